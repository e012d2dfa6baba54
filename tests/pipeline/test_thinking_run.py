"""Whole runs of a tiny model whose template has a thinking block: closed, and let think."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from thinking_templates import OPENED, SWITCHED, make_thinking
from tiny import make_model, make_tokenizer, plain
from transformers import GenerationMixin

from safesteer.cli.main import app
from safesteer.config.load import load_settings
from safesteer.evaluate.stored import read_results
from safesteer.evaluate.suite import Suite
from safesteer.events import Reporter
from safesteer.export.commands import commands
from safesteer.inference import variant as variants
from safesteer.inference.variant import ModelVariant
from safesteer.models.files import fingerprint
from safesteer.models.load import load_model
from safesteer.pipeline.stages import Pipeline
from safesteer.prompts import load_prompt_sets
from safesteer.report.words import thinking_of
from safesteer.runs.directory import RunDirectory

EMPTY = "<think>\n\n</think>\n\n"
QUICK: dict[str, dict[str, Any]] = plain(
    direction={
        "source": "refuse-comply",
        "advanced": {"layers": [1, 2], "coefficients": [1.0]},
    },
    tokens={"num_tokens": 20, "num_generations": 2, "horizon": 4, "advanced": {"num_prompts": 3}},
    train={
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 2,
        "max_completion_length": 6,
        "short_rollout_length": 3,
        "lora": {"r": 2},
    },
    evaluate={"max_new_tokens": 5, "limit": 2, "drift_prompts": 2},
)


class Notes(Reporter):
    """Which stage is under way, and what was noted."""

    def __init__(self) -> None:
        self.now = ""
        self.notes: list[str] = []

    def stage(self, name: str, detail: str = "") -> None:
        self.now = name

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def model_folder(tmp_path):  # type: ignore[no-untyped-def]
    """Makes a folder with a tiny model that has a template."""

    def make(template: str) -> Path:
        tokenizer = make_thinking(make_tokenizer(), template)
        make_model(tokenizer).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def settings_for(model: Path, prompts: dict[str, str], **kwargs: Any) -> Any:
    name = {"id": str(model), "dtype": "float32", "device": "cpu", "template_kwargs": kwargs}
    return load_settings(model=name, prompts=prompts, **QUICK)


def run(settings: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A finished run, what it noted, and {stage: endings of the prompts it generated from}."""
    told = Notes()
    endings: dict[str, set[str]] = {}
    tokenizer = load_model(settings.model).tokenizer
    original = GenerationMixin.generate

    def generate(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        for ids in kwargs["input_ids"]:
            text = tokenizer.decode(ids.tolist())
            endings.setdefault(told.now, set()).add(text.rpartition("assistant\n")[2])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    with RunDirectory.open(
        folder, settings=settings, model=fingerprint(settings.model)
    ) as directory:
        Pipeline(directory, told).run_all()
    return RunDirectory.load(folder), told, endings


@pytest.mark.parametrize("template", [SWITCHED, OPENED])
def test_every_stage_answers_after_an_empty_block(
    template, model_folder, new_prompt_sets, tmp_path, monkeypatch, capsys
):
    """Closed by the template's argument or by us, everywhere; recorded, and said to the reader."""
    settings = settings_for(model_folder(template), new_prompt_sets(6, 3))
    done, told, endings = run(settings, tmp_path / "run", monkeypatch)
    assert endings.keys() >= {"direction", "tokens", "train", "evaluate", "report"}
    assert set.union(*endings.values()) == {EMPTY}
    record = done.manifest["model"]["thinking"]
    assert not record["on"] and record["closing"] == "</think>"
    switched = template is SWITCHED
    assert record["template_kwargs"] == ({"enable_thinking": False} if switched else {})
    assert record["appended"] == ("" if switched else "\n</think>\n\n")
    sample = (done.path / "eval" / "samples" / "aligned-harmful.jsonl").read_text().splitlines()[0]
    assert "thinking" not in json.loads(sample)
    assert "thinking is off" in (done.path / "README.md").read_text()
    assert "thinking is off" in (done.path / "report.html").read_text()
    assert not any("thinking block" in note for note in told.notes)

    app(["export", str(done.path), "--format", "commands"], standalone_mode=False)
    lines = capsys.readouterr().out
    assert ("--default-chat-template-kwargs '{\"enable_thinking\": false}'" in lines) == switched
    assert ('"chat_template_args": {"enable_thinking": false}' in lines) == switched
    assert ("# The run's answers follow an empty thinking block" in lines) == (not switched)


def test_a_block_that_nothing_closes_is_recorded_as_unknown(
    model_folder, new_prompt_sets, tmp_path
):
    """Report and card then do not pass over it, and the commands of an export are made."""
    template = OPENED.replace(".split('</think>')[-1]", "")
    settings = settings_for(model_folder(template), new_prompt_sets(6, 3))
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("</think>", "</other>"), "utf-8")
    model = fingerprint(settings.model)
    with RunDirectory.open(tmp_path / "run", settings=settings, model=model) as directory:
        assert Pipeline(directory).model.chat.unclosed == "<think>"
    recorded = RunDirectory.load(tmp_path / "run").manifest["model"]
    assert recorded["unclosed_thinking"] == "<think>" and "thinking" not in recorded
    assert "unknown, since its chat template opens <think>" in thinking_of(recorded)
    (tmp_path / "run" / "model").mkdir()
    assert "vllm serve" in commands(tmp_path / "run", settings, recorded)


def test_a_model_that_is_let_think_is_scored_on_its_answers(
    model_folder, new_prompt_sets, tmp_path, monkeypatch
):
    """Direction, tokens and insides after an empty block; rollouts and evaluation with thoughts.

    The model never ends its thoughts: it has no answer, no verdict, and learns nothing.
    """
    settings = settings_for(model_folder(OPENED), new_prompt_sets(6, 3), enable_thinking=True)
    done, told, endings = run(settings, tmp_path / "run", monkeypatch)
    scored = endings["direction"] | endings["tokens"] | endings["report"]
    assert scored == {EMPTY} and endings["train"] == endings["evaluate"] == {"<think>\n"}
    assert done.manifest["model"]["thinking"]["on"]
    entry = read_results(done.path)["aligned"]["harmful"]
    assert (entry["value"], entry["n"], entry["unfinished"]) == (None, 0, 2)
    assert any("thinking did not end within" in note for note in told.notes)
    rows = (done.path / "eval" / "samples" / "base-harmful.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        assert row["completion"] == "" and row["thinking"] and row["finished"] is False
        assert row["refused"] is None and row["score"] is None
    metrics = [json.loads(x) for x in (done.path / "train/metrics.jsonl").read_text().splitlines()]
    assert [line["unfinished"] for line in metrics] == [1.0, 1.0]
    assert [line["loss"] for line in metrics] == [0.0, 0.0]
    assert "only the answer after it is judged" in (done.path / "report.html").read_text()


def test_only_the_answer_is_judged(model_folder, new_prompt_sets, tmp_path, monkeypatch):
    """A refusal in the thoughts is none; the transcript keeps them apart."""
    settings = settings_for(model_folder(OPENED), new_prompt_sets(6, 3), enable_thinking=True)
    model = load_model(settings.model)
    written = [
        "I cannot help with this.</think>\n\nSure, here is how you can do that.",
        "Sure, here is how.</think>\n\nI'm sorry, but I can't assist with that request.",
    ]
    monkeypatch.setattr(
        variants,
        "generate_batches",
        lambda *args, **kwargs: [dict(enumerate(map(model.chat.answer_ids, written)))],
    )
    sets = load_prompt_sets(settings.prompts, 0)
    suite = Suite.plan(["harmful"], settings, sets, tmp_path)
    found = suite.measure([ModelVariant("base", model, model.model)], tmp_path)["base"]["harmful"]
    assert [row["refused"] for row in found.rows()] == [False, True]
    assert [row["thinking"] for row in found.rows()] == [
        "I cannot help with this.",
        "Sure, here is how.",
    ]
    assert found.to_json()["value"] == 0.5 and "unfinished" not in found.to_json()
