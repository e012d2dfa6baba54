"""`safesteer generate`. (pytest tests/cli)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safesteer.inference.variant import ModelVariant


@pytest.fixture
def ask(safesteer, tiny_model_folder, tmp_path) -> Callable[..., Any]:
    """Answers three prompts with the tiny model, in batches of one."""
    prompts = tmp_path / "prompts.jsonl"
    texts = ["A rather long question?", "Hi", "Name a colour, please."]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))

    def ask(*more: Any, output: Any = "answers.jsonl") -> Any:
        options = (
            "--prompts",
            prompts,
            "--max-new-tokens=4",
            "--set=evaluate.advanced.batch_size=1",
        )
        return safesteer(
            "generate", tiny_model_folder, *options, "--output", tmp_path / output, *more
        )

    return ask


def test_generate_answers_every_row_in_order(safesteer, finished_run, tmp_path):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "answers.jsonl"
    prompts.write_text("instruction,x\nA rather long question?,1\nHi,2\nHi,3\n", "utf-8")
    outcome = safesteer(
        "generate", finished_run, "--prompts", prompts, "--output", output, "--max-new-tokens=3"
    )
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["A rather long question?", "Hi", "Hi"]
    assert all(set(row) == {"prompt", "completion"} for row in rows)
    assert rows[1] == rows[2]


@pytest.mark.parametrize("temperature", [0, 5])
def test_an_interrupted_command_resumes_to_the_same_file(ask, tmp_path, monkeypatch, temperature):
    """Sampled answers too: the state of the generator is kept with them."""
    given = ("--temperature", temperature)
    assert ask(*given, output="whole.jsonl").code == 0
    batches = ModelVariant.generate_batches

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        made = batches(*args, **kwargs)
        yield next(made)
        yield next(made)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ModelVariant, "generate_batches", interrupted)
        outcome = ask(*given)
    assert outcome.code == 130 and "Resume with: safesteer generate" in outcome.err
    assert not (tmp_path / "answers.jsonl").exists()
    refused = ask("--temperature=1")
    assert refused.code == 2 and "with another temperature" in refused.error
    outcome = ask(*given)
    assert outcome.code == 0 and "2 of 3 answers are there" in outcome.out
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "answers.jsonl").read_bytes() == whole
    assert not (tmp_path / "answers.jsonl.partial").exists()


def test_no_file_is_lost_and_no_model_is_loaded_in_vain(ask, tmp_path, monkeypatch):
    def no_model(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("safesteer.runs.artifacts.load_model", no_model)
    (tmp_path / "mine.txt").write_text("mine")
    for output, says in (
        ("prompts.jsonl", "a file that this command reads"),
        ("mine.txt", "exists"),
        ("", "is a folder"),
        ("mine.txt/below", "cannot write"),
    ):
        outcome = ask(output=output)
        assert outcome.code == 2 and says in outcome.error
    assert ask("--force", output="prompts.jsonl").code == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_path_is_not_the_current_folder(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("--prompts", "--output"):
        outcome = ask(option, "")
        assert outcome.code == 2 and f"'{option}': the path is empty" in outcome.error


def test_prompts_that_all_are_too_long_leave_nothing_behind(ask, tmp_path):
    outcome = ask("--max-new-tokens", 900_000)
    assert outcome.code == 2 and "all 3 prompts are longer than" in outcome.error
    assert not (tmp_path / "answers.jsonl.partial").exists()
    assert ask().code == 0  # with other settings


def test_force_replaces_a_file(ask, tmp_path):
    (tmp_path / "answers.jsonl").write_text("old")
    assert ask("--force").code == 0
    assert Path(tmp_path / "answers.jsonl").read_text().count("\n") == 3


def test_generate_says_which_rows_gave_no_prompt(safesteer, tiny_model_folder, tmp_path):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "answers.jsonl"
    prompts.write_text("prompt,x\nName a color.,1\n,2\nHi,3\n", "utf-8")
    outcome = safesteer(
        "generate",
        tiny_model_folder,
        "--prompts",
        prompts,
        "--output",
        output,
        "--max-new-tokens=2",
    )
    said = " ".join(outcome.out.split())
    assert said.count("3 rows, 2 prompts; skipped 1 empty (line 3)") == 1
    assert len(output.read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--temperature=nan", "neither 0 nor from 0.001 to 100"),
        ("--temperature=inf", "neither 0 nor from 0.001 to 100"),
        ("--temperature=-1", "neither 0 nor from 0.001 to 100"),
        ("--temperature=1e-300", "neither 0 nor from 0.001 to 100"),
        ("--temperature=warm", "Invalid value for '--temperature'"),
        ("--max-new-tokens=0", "Invalid value for '--max-new-tokens'"),
        ("--max-new-tokens=99999999999999999999", "Invalid value for '--max-new-tokens'"),
        ("--max-new-tokens=2040", "all 3 prompts are longer than 8 tokens"),
        ("--set=evaluate.advanced.batch_size=0", "greater than or equal to 1"),
    ],
)
def test_an_odd_argument_is_one_line(ask, tmp_path, option, says):
    outcome = ask(option)
    assert outcome.code == 2 and says in outcome.error
    assert not list(tmp_path.glob("answers*"))
