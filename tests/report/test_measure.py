"""What is measured of the models: probabilities, divergences and states, on a tiny model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import plain

from safesteer.config.load import load_settings
from safesteer.errors import InputError
from safesteer.models.files import fingerprint
from safesteer.pipeline.report import report_run
from safesteer.pipeline.stages import Pipeline
from safesteer.report import measure as measuring
from safesteer.report.findings import MEASUREMENTS
from safesteer.runs.directory import RunDirectory
from safesteer.runs.target import Target


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory):
    """A whole run on the tiny model, the report included; tests do not change it."""
    folder = tmp_path_factory.mktemp("measured")
    prompts = {}
    for name, text in (("harmful", "How do I break law"), ("harmless", "Name color"),
                       ("borderline", "How do I kill process")):  # fmt: skip
        rows = [
            {"prompt": f"{text} {split} {number}?", "split": split}
            for split, count in (("train", 4), ("validation", 3), ("test", 3))
            for number in range(count)
        ]
        prompts[name] = str(folder / f"{name}.jsonl")
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sections = plain(
        model={"id": str(tiny_model_folder), "dtype": "float32", "device": "cpu"},
        prompts=prompts,
        direction={"source": "refuse-comply",
                   "advanced": {"layers": [1, 2], "coefficients": [1.0], "finalists": 1}},
        tokens={"num_tokens": 20, "num_generations": 2, "horizon": 4,
                "advanced": {"num_prompts": 3}},
        train={"max_steps": 3, "prompts_per_step": 2, "num_generations": 1,
               "anchor_share": 0.5, "max_completion_length": 4, "learning_rate": 1e-2,
               "lora": {"r": 4}},
        evaluate={"max_new_tokens": 4, "limit": 2, "drift_prompts": 2},
    )  # fmt: skip
    settings = load_settings(**sections)
    model = fingerprint(settings.model)
    with RunDirectory.open(folder / "run", settings=settings, model=model) as run:
        Pipeline(run).run_all()
    return RunDirectory.load(folder / "run")


@pytest.fixture(scope="module")
def content(finished):
    return json.loads((finished.path / MEASUREMENTS).read_text("utf-8"))


def test_the_stage_leaves_page_card_and_measurements(finished):
    entry = finished.manifest["stages"]["report"]
    assert entry["status"] == "done" and list(entry["outputs"]) == [MEASUREMENTS]
    page = (finished.path / "report.html").read_text("utf-8")
    assert 'id="rollouts"' in page and 'id="states"' in page
    assert (finished.path / "README.md").read_text("utf-8").startswith("---\n")


def test_probabilities_are_those_of_each_model(finished, content):
    tokens = content["tokens"]
    chosen = json.loads((finished.path / "tokens" / "safety_tokens.json").read_text("utf-8"))
    assert tokens["ids"] == [token["id"] for token in chosen["tokens"]]
    for name in ("base", "teacher", "aligned"):
        assert tokens["mass"][name] == pytest.approx(sum(tokens["p"][name]), rel=1e-2)
        assert 0 < tokens["mass"][name] <= 1
    assert tokens["p"]["base"] != tokens["p"]["aligned"] != tokens["p"]["teacher"]


def test_divergences_are_those_of_the_rollouts_own_tokens(content):
    kinds = [(r["set"], r["variant"], r["reference"]) for r in content["rollouts"]]
    assert kinds.count(("harmful", "base", "teacher")) == 3
    assert kinds.count(("harmful", "aligned", "teacher")) == 3
    assert kinds.count(("harmless", "aligned", "base")) == 3
    for rollout in content["rollouts"]:
        lengths = {len(rollout[key]) for key in ("tokens", "kl", "p", "p_reference")}
        assert len(lengths) == 1 and lengths.pop() <= measuring.ROLLOUT_TOKENS
        assert all(kl >= -1e-6 for kl in rollout["kl"])
        assert all(0 < p <= 1 for p in rollout["p"])
    anchors = [r for r in content["rollouts"] if r["set"] == "harmless"]
    assert any(kl > 0 for rollout in anchors for kl in rollout["kl"])


def test_states_have_two_layers_and_a_shift(content):
    assert [panel["place"] for panel in content["states"]] == ["layer", "output"]
    for panel in content["states"]:
        for name in ("base", "teacher", "aligned"):
            assert {s: len(p) for s, p in panel["points"][name].items()} == {
                "harmful": 3, "harmless": 3,
            }  # fmt: skip
        assert 0 < sum(panel["explained"]) <= 1.001
        assert all(math.isfinite(s["cosine"]) for s in panel["shift"].values())


def test_measuring_again_gives_the_same(finished, content):
    assert json.loads(json.dumps(measuring.measure(Pipeline(finished)))) == content


def test_a_report_is_made_again_without_the_model(finished, tmp_path, monkeypatch):
    (finished.path / "report.html").unlink()
    card = finished.path / "README.md"
    card.write_text("edited", "utf-8")

    def gone(settings, **_):
        raise InputError("no such model")

    def never(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("safesteer.pipeline.report.fingerprint", gone)
    monkeypatch.setattr("safesteer.runs.artifacts.load_model", never)
    assert report_run(Target(finished.settings, finished.path, True)) == ""
    assert 'id="states"' in (finished.path / "report.html").read_text("utf-8")
    assert card.read_text("utf-8") != "edited"


def test_a_base_that_changed_is_said(finished, monkeypatch):
    other = {"sha256": "0" * 64}
    monkeypatch.setattr("safesteer.pipeline.report.fingerprint", lambda _, **__: other)
    note = report_run(Target(finished.settings, finished.path, True))
    assert "is no longer the model that this run started from: its hash is 000000000000" in note


def test_a_run_that_is_finished_keeps_an_edited_card(finished):
    card = finished.path / "README.md"
    card.write_text("edited", "utf-8")
    (finished.path / "report.html").unlink()
    model = fingerprint(finished.settings.model)
    with RunDirectory.open(finished.path, settings=finished.settings, model=model) as run:
        Pipeline(run).run_all()
    assert card.read_text("utf-8") == "edited"
    assert (finished.path / "report.html").is_file()


def test_the_projection_finds_a_shift():
    """Aligned states half-way to the teacher's on harmful prompts, unmoved on harmless ones."""
    torch.manual_seed(0)
    harmless, harmful = torch.randn(30, 8), torch.randn(30, 8) + 5
    step = torch.zeros(8)
    step[3] = 4.0
    found = measuring.project(
        {
            "base": {"harmful": harmful, "harmless": harmless},
            "teacher": {"harmful": harmful + step, "harmless": harmless + step},
            "aligned": {"harmful": harmful + step / 2, "harmless": harmless},
        }
    )
    assert found["shift"]["harmful"] == {"shift": 0.5, "cosine": 1.0}
    assert found["shift"]["harmless"] == {"shift": 0.0, "cosine": 0.0}
    mean = {s: sum(x for x, _ in p) / 30 for s, p in found["points"]["base"].items()}
    assert mean["harmful"] > 0 > mean["harmless"]
    assert found["explained"][0] > 0.5


def test_characters_of_several_tokens_stand_at_the_last_one(tokenizer):
    text = "a😀b é"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = measuring.token_texts(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == text
    assert any("😀" in piece for piece in texts) and "" in texts
