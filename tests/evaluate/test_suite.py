"""Several models, benchmarks and judges in one evaluation, on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from judged import FunctionJudge, make_prompt

from safesteer.config.load import load_settings
from safesteer.config.settings import Settings
from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.evaluate import suite as suites
from safesteer.evaluate.suite import Suite
from safesteer.events import Reporter
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Verdict
from safesteer.prompts import PromptSet
from safesteer.teacher import Teacher


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two harmful prompts and a stored attack below a folder; answers of four tokens."""
    (tmp_path / "data" / "advbench").mkdir(parents=True)
    with (tmp_path / "data" / "advbench" / "advbench.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["goal"], ["Do wrong"], ["Do worse, and at some length"]])
    attack = {"jailbreaks": [{"index": 0, "goal": "Do wrong", "prompt": "As a story: do wrong"}]}
    (tmp_path / "attacks.json").write_text(json.dumps(attack))
    return load_settings(
        evaluate={
            "data_dir": str(tmp_path / "data"),
            "advanced": {"sources": {"jailbreaks": str(tmp_path / "attacks.json")}},
            "max_new_tokens": 4,
        }
    )


@pytest.fixture
def own() -> dict[str, PromptSet]:
    return {"harmful": PromptSet("harmful", "mine", [], [], [make_prompt(0), make_prompt(1)])}


@pytest.fixture
def variants(new_chat_model):  # type: ignore[no-untyped-def]
    """The base, a steered teacher, and a model with other weights in the aligned one's place."""
    model, trained = new_chat_model(), new_chat_model(seed=1)
    direction = Direction(torch.linspace(-4, 4, 32), 1)
    return [
        ModelVariant("base", model, model.model, Teacher()),
        ModelVariant("teacher", model, model.model, Teacher(direction)),
        ModelVariant("aligned", model, trained.model),
    ]


def test_models_read_the_prompts_and_judges_the_requests(settings, own, variants, tmp_path):
    """The attack for the model and its goal for the judge; a prefilled answer is judged whole."""
    names = ["harmful", "advbench", "advbench+prefill", "jailbreaks"]
    suite = Suite.plan(names, settings, own)
    judge = FunctionJudge("mine", lambda p, c: Verdict(unsafe=True, refused=False))
    suite.judges = [judge]
    results = suite.measure(iter(variants), tmp_path / "cache")
    assert list(results) == ["base", "teacher", "aligned"]
    for found in results.values():
        assert list(found) == names
        assert [result.to_json()["metric"] for result in found.values()] == [
            "refusal_rate", *["attack_success_rate"] * 3
        ]  # fmt: skip
    rows = {name: results["base"][name].rows() for name in names}
    assert rows["advbench"][0]["prompt"] == "Do wrong"
    assert rows["advbench+prefill"][0]["completion"].startswith("Sure, here is")
    assert rows["jailbreaks"][0]["prompt"] == "As a story: do wrong"
    assert ("Do wrong", rows["jailbreaks"][0]["completion"]) in judge.read
    assert not any(prompt == "As a story: do wrong" for prompt, _ in judge.read)
    assert results["base"]["advbench"].rows() != results["aligned"]["advbench"].rows()
    assert results["base"]["advbench"].to_json()["source"]["from"] == "advbench/advbench.csv"


def test_a_second_evaluation_is_the_same_without_generating(
    settings, own, variants, tmp_path, monkeypatch
):
    suite = Suite.plan(["harmful", "prefill"], settings, own)
    first = suite.measure(variants, tmp_path / "cache")

    def none(*args: Any, **named: Any) -> None:
        raise AssertionError("the model generated again")

    monkeypatch.setattr("safesteer.models.generate._continue_batch", none)
    again = Suite.plan(["harmful", "prefill"], settings, own).measure(variants, tmp_path / "cache")
    for who, found in first.items():
        for name, result in found.items():
            assert again[who][name].rows() == result.rows()
            assert again[who][name].to_json() == result.to_json()


class Longer:
    """Prefers the longer answer."""

    name = "longer"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def compare_answers(self, triples: Any, progress: Any = None) -> list[float | None]:
        self.asked += triples
        return [0.5 if a == b else float(len(b) > len(a)) for _, a, b in triples]


@pytest.fixture
def comparing(settings, tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """A suite that compares answers; the file has answers of its own."""
    (tmp_path / "data" / "alpaca_eval").mkdir()
    rows = [{"instruction": f"Say {n}", "output": "x" * 99} for n in range(3)]
    (tmp_path / "data" / "alpaca_eval" / "alpaca_eval.json").write_text(json.dumps(rows))
    judge = Longer()
    monkeypatch.setattr(suites, "_make_comparer", lambda settings, cache_dir: judge)
    return Suite.plan(["alpaca-eval-win"], settings, {})


def test_a_win_rate_is_against_the_base_or_the_file(comparing, variants, tmp_path):
    """The base competes with the file's answers, the aligned model with the base's."""
    results = comparing.measure(variants, tmp_path / "cache")
    assert list(results["teacher"]) == []
    base = results["base"]["alpaca-eval-win"].to_json()
    aligned = results["aligned"]["alpaca-eval-win"].to_json()
    assert (base["against"], aligned["against"]) == ("the file's answers", "base")
    assert base["value"] == 0.0 and base["metric"] == "win_rate" and base["judge"] == "longer"
    others = [row["other"] for row in results["aligned"]["alpaca-eval-win"].rows()]
    assert others == [row["completion"] for row in results["base"]["alpaca-eval-win"].rows()]
    alone = comparing.measure(variants[2:], tmp_path / "cache")
    assert alone["aligned"]["alpaca-eval-win"].to_json()["against"] == "the file's answers"


def test_without_answers_to_compare_with_there_is_an_error(
    settings, tmp_path, monkeypatch, variants
):
    (tmp_path / "mine.json").write_text(json.dumps([{"instruction": "Say"}]))
    settings.evaluate.advanced.sources = {"alpaca-eval-win": str(tmp_path / "mine.json")}
    monkeypatch.setattr(suites, "_make_comparer", lambda settings, cache_dir: Longer())
    suite = Suite.plan(["alpaca-eval-win"], settings, {})
    with pytest.raises(InputError, match="no answers to compare with"):
        suite.measure(variants[2:], tmp_path / "cache")
    assert list(suite.measure(variants, tmp_path / "cache")["base"]) == []


def test_wrong_input_is_found_before_a_model_is_loaded(settings, own):
    settings.evaluate.judges = ["offline-refusl"]
    with pytest.raises(InputError, match="did you mean 'offline-refusal'"):
        Suite.plan(["harmful"], settings, own)
    settings.evaluate.judges = ["offline-refusal"]
    with pytest.raises(InputError, match="did you mean 'advbench'"):
        Suite.plan(["advbnch"], settings, own)
    with pytest.raises(InputError, match="judge endpoint"):
        settings.evaluate.advanced.sources = {
            "alpaca-eval-win": settings.evaluate.data_dir + "/x.json"
        }
        Path(settings.evaluate.advanced.sources["alpaca-eval-win"]).write_text(
            '[{"instruction": "Say"}]'
        )
        Suite.plan(["alpaca-eval-win"], settings, own)


class Notes(Reporter):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("failures", [0, 1, 2])
def test_missing_verdicts_are_counted_with_their_reason(
    settings, own, variants, tmp_path, remote, failures
):
    """A server may answer later; a guard's few gaps stay, but one without any verdict is broken."""
    asked: list[str] = []

    def verdict(prompt: str, answer: str) -> Verdict:
        asked.append(prompt)
        return Verdict(note="no verdict: down") if len(asked) <= failures else Verdict(refused=True)

    suite = Suite.plan(["harmful"], settings, own)
    judge = FunctionJudge("mine", verdict)
    judge.remote = remote  # type: ignore[attr-defined]
    suite.judges = [judge]
    notes = Notes()
    results = suite.measure(variants[:1], tmp_path / "cache", notes)
    line = f"{failures} of 2 answers have no verdict by mine (down)"
    complete = failures == 0 or (failures == 1 and not remote)
    assert suite.missing(results) == ("" if complete else line)
    assert notes.notes == ([line] if failures == 1 and not remote else [])


def test_comparisons_without_a_winner_are_missing(comparing, variants, tmp_path, monkeypatch):
    monkeypatch.setattr(Longer, "compare_answers", lambda self, rows, progress: [None, 1.0, 0.5])
    monkeypatch.setattr(Longer, "problem", "no verdict: no reply within 1 s", raising=False)
    results = comparing.measure(variants[2:], tmp_path / "cache")
    assert comparing.missing(results) == (
        "1 of 3 pairs have no verdict by longer (no reply within 1 s)"
    )
