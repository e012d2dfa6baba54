"""README.md: what the hub reads from it, and what must not stand in it."""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from safesteer.report import card as card_module
from safesteer.report.card import BUILTIN_HUB, base_facts, render_card
from safesteer.report.findings import read_findings

BUILTIN = {"id": "smollm2-135m", "revision": None, "sha256": "1" * 64}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test asks the hub; its answer for the hub model is `FACTS`."""
    original = card_module.base_facts
    facts = {"license": "mit", "language": ["en", "de"]}
    monkeypatch.setattr(
        card_module,
        "base_facts",
        lambda base: facts if base.id == "owner/some-chat-model" else original(base),
    )


def test_the_metadata_is_what_the_hub_expects(new_run):
    card = ModelCard(render_card(read_findings(new_run())), ignore_metadata_errors=False)
    data = card.data
    assert data.base_model == "owner/some-chat-model"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.license == "mit" and data.language == ["en", "de"]
    assert {"safesteer", "lora"} <= set(data.tags)


def test_all_weights_are_a_finetune_of_transformers(new_run):
    text = render_card(read_findings(new_run(train={"method": "full"})))
    data = ModelCard(text).data
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.library_name == "transformers"
    assert "vllm serve model" in text and "lora" not in data.tags


def test_a_scaled_adapter_is_named(new_run):
    words = "adapter scaled by 1.25 after training"
    stronger = {"lora": {"extrapolation": 0.25}}
    assert words in render_card(read_findings(new_run("stronger", train=stronger)))
    none = {"lora": {"extrapolation": 0.0}}
    assert words not in render_card(read_findings(new_run("none", train=none)))
    full = new_run("full", train={"method": "full", **stronger})
    assert words not in render_card(read_findings(full))


def test_the_built_in_model_is_named_by_its_place_on_the_hub(new_run):
    text = render_card(read_findings(new_run(model=BUILTIN)))
    data = ModelCard(text).data
    assert data.base_model == BUILTIN_HUB
    assert data.license == "apache-2.0"
    assert "safesteer run smollm2-135m --config config.yaml" in text


def test_a_local_base_is_not_in_the_metadata(new_run, tiny_model_folder):
    readme = tiny_model_folder / "README.md"
    readme.write_text("---\nlicense: apache-2.0\nlanguage: en\n---\nA base.\n", "utf-8")
    try:
        model = {"id": str(tiny_model_folder), "revision": None, "sha256": "2" * 64}
        text = render_card(read_findings(new_run(model=model)))
    finally:
        readme.unlink()
    data = ModelCard(text).data
    assert data.base_model is None and "base_model_relation" not in data.to_dict()
    assert data.license == "apache-2.0"
    assert str(tiny_model_folder) in text


def test_no_path_of_this_machine_and_no_answer(new_run, tmp_path):
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Question {i}?"}}\n' for i in range(60)), "utf-8")
    run = new_run(text="SECRET", prompts={"harmless": str(prompts)})
    for text in (render_card(read_findings(run)), render_card(read_findings(new_run("b")))):
        assert "SECRET" not in text and "harmful prompt 0" not in text
        assert str(tmp_path) not in text and str(run.path) not in text
        assert not re.search(r"[\s\"'(`=]/(?!/)\w+/", text.replace("://", ""))
    assert "`mine.jsonl`" in render_card(read_findings(run))


def test_the_table_has_intervals_and_the_paired_test(new_run, judged):
    text = render_card(read_findings(new_run(benchmarks=judged)))
    assert "| harmful requests | refused ↑ | 5.0% (1-24; 20) | 80.0% (58-92; 20) |" in text
    assert "no detectable difference" in text and "-40.0 points" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in rows if "requests |" in line or "harmbench" in line}
    assert len(widths) == 1


@pytest.mark.parametrize("until", ["direction", "train"])
def test_an_unfinished_run_has_a_card_too(new_run, until):
    text = render_card(read_findings(new_run(until=until)))
    assert "Not evaluated yet." in text
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "text-generation"


def test_an_unknown_license_is_omitted(new_run, monkeypatch):
    monkeypatch.setattr(card_module, "base_facts", lambda base: {})
    text = render_card(read_findings(new_run()))
    assert ModelCard(text).data.license is None
    assert "look it up there" in text


def test_facts_of_a_base_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    from safesteer.config.settings import ModelSettings

    def offline(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    assert base_facts(ModelSettings(id="owner/some-chat-model")) == {}


NAME = "evil`]|<img src=x>\n\n# Safe\n```\n---\n_all_ [click](http://x) \x1b[2J\u202e\"'; rm x"


def test_names_from_outside_are_text_and_nothing_else(new_run, tmp_path, monkeypatch):
    """Of a base, a revision, a license, a file of prompts, a benchmark and a judge."""
    facts = {"license": NAME[:5] + "*bold* <b>|", "language": ["en"]}
    monkeypatch.setattr(card_module, "base_facts", lambda base: facts)
    prompts = tmp_path / f"{NAME.replace('/', ':')}.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Question {i}?"}}\n' for i in range(60)), "utf-8")
    entry = {
        "metric": "accuracy", "value": 0.5, "ci95": [0.4, 0.6], "n": 9, "judge": NAME,
        "kind": "capability",
    }  # fmt: skip
    for local in (True, False):
        model = {"id": f"/models/{NAME}" if local else NAME, "revision": NAME, "sha256": "1"}
        run = new_run(
            f"run-{local}",
            model={**model, "adapter_of": NAME},
            prompts={"harmless": str(prompts)},
            benchmarks={"aligned": {NAME: entry}},
        )
        text = render_card(read_findings(run))
        head, body = text.split("\n---\n", 1)
        data = ModelCard(text).data
        assert data.license == facts["license"] and data.pipeline_tag == "text-generation"
        assert yaml.safe_load(head.removeprefix("---\n"))["library_name"] == "peft"
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
        outside = without_code(body)
        assert not re.search(r"(?<!\\)<(img|b)", outside)
        assert not re.search(r"(?<!\\)\]\(http://x", outside)
        assert "# Safe" not in outside.splitlines()
        rows = [line for line in outside.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows[2:5]}
        assert cells == {7}


def without_code(text: str) -> str:
    """Markdown without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "CODE", text)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("mit", True), (["en", "de"], True), ("", False), (None, False), ([], False),
        ("mit\n---\n# Safe", False), ("m\x1b[2J", False), ("\u202etim", False), ("m" * 201, False),
        ({"name": "mit"}, False), ([["en"]], False), (3, False),
    ],
)  # fmt: skip
def test_only_names_are_taken_from_another_card(tiny_model_folder, tmp_path, value, kept):
    from safesteer.config.settings import ModelSettings

    (tmp_path / "config.json").write_text("{}")
    content = yaml.safe_dump({"license_name": value, "tags": ["x"]})
    (tmp_path / "README.md").write_text(f"---\n{content}---\nA base.\n", "utf-8")
    facts = base_facts(ModelSettings(id=str(tmp_path)))
    assert facts == ({"license_name": value} if kept else {})
