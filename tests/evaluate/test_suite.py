"""Several models, benchmarks and judges in one evaluation. On a tiny model, with judges of ours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from safesteer.config.load import load_settings
from safesteer.config.settings import Settings
from safesteer.direction.vector import Direction
from safesteer.errors import InputError
from safesteer.evaluate import suite as suites
from safesteer.evaluate.refusals import (
    Rate,
    Sample,
    judge_all,
    lead_by_one_judge,
    make_samples,
)
from safesteer.evaluate.scores import Score
from safesteer.evaluate.suite import Suite
from safesteer.evaluate.versus import versus_base
from safesteer.inference.variant import ModelVariant
from safesteer.judges import Verdict
from safesteer.models.chat import Response
from safesteer.prompts import Prompt, PromptSet
from safesteer.teacher import Teacher

SOURCE = {"from": "x.csv", "sha256": "0"}


class Says:
    """A judge that says of each answer what a function says; remembers what it read."""

    def __init__(self, name: str, verdict: Callable[[str, str], Verdict]) -> None:
        self.name = name
        self.verdict = verdict
        self.read: list[tuple[str, str]] = []
        self.released = 0

    def judge(self, pairs: Sequence[tuple[str, str]], progress: Any = None) -> list[Verdict]:
        self.read += pairs
        return [self.verdict(prompt, answer) for prompt, answer in pairs]

    def release(self) -> None:
        self.released += 1


def prompt(number: int, text: str = "") -> Prompt:
    return Prompt(f"p{number}", ({"role": "user", "content": text or f"Question {number}?"},))


def rate(verdicts: dict[str, list[Verdict]], metric: str, **more: Any) -> Rate:
    count = len(next(iter(verdicts.values())))
    prompts = [prompt(n) for n in range(count)]
    samples = make_samples(prompts, [p.text for p in prompts], [Response("Yes.")] * count, verdicts)
    kind = "safety" if metric == "attack_success_rate" else "over_refusal"
    return Rate("x", kind, samples, metric, tuple(verdicts), **more)


def test_each_judge_has_its_own_count_and_the_first_leads():
    yes, no, none = Verdict(unsafe=True), Verdict(unsafe=False), Verdict(note="no verdict: cut off")
    entry = rate(
        {"a": [yes, yes, no, none], "b": [yes, no, no, no]}, "attack_success_rate"
    ).to_json()
    assert (entry["metric"], entry["judge"], entry["n"]) == ("attack_success_rate", "a", 3)
    assert entry["value"] == pytest.approx(2 / 3)
    a, b = entry["judges"]["a"], entry["judges"]["b"]
    assert (a["value"], a["n"], a["no_verdict"]) == (pytest.approx(2 / 3), 3, 1)
    assert (b["value"], b["n"], b["no_verdict"]) == (0.25, 4, 0)
    assert a["ci95"] == entry["ci95"] != b["ci95"]
    assert entry["disagreement"] == pytest.approx(1 / 3)
    json.dumps(entry, allow_nan=False)


def test_an_answer_without_verdict_is_shown_and_not_counted():
    entry = rate({"a": [Verdict(unsafe=True), Verdict()]}, "attack_success_rate").to_json()
    assert (entry["value"], entry["n"]) == (1.0, 1)
    assert entry["judges"]["a"]["no_verdict"] == 1
    assert "disagreement" not in entry
    silent = rate({"a": [Verdict(), Verdict()]}, "attack_success_rate").to_json()
    assert silent["value"] is None and silent["n"] == 0 and silent["ci95"] == [0.0, 1.0]


def test_where_no_judge_says_what_is_refused_the_offline_judge_leads():
    """A guard model says whether an answer is unsafe; over-refusal needs another word."""
    guarded = rate({"guard": [Verdict(unsafe=False)] * 2}, "refusal_rate")
    (entry,) = (found.to_json() for found in lead_by_one_judge([guarded]))
    assert (entry["judge"], entry["n"], entry["value"]) == ("offline-refusal", 2, 0.0)
    assert entry["judges"]["guard"]["no_verdict"] == 2


def test_figures_of_two_models_are_always_of_one_judge():
    """A server that goes down between two models leads neither, and is shown without verdicts."""
    yes, no, none = Verdict(unsafe=True), Verdict(unsafe=False), Verdict(note="no verdict: down")
    before = rate({"server": [yes, yes], "file": [yes, no]}, "attack_success_rate")
    after = rate({"server": [none, none], "file": [no, no]}, "attack_success_rate")
    entries = [found.to_json() for found in lead_by_one_judge([before, after])]
    assert [(entry["judge"], entry["value"]) for entry in entries] == [("file", 0.5), ("file", 0)]
    assert entries[1]["judges"]["server"]["no_verdict"] == 2
    alone = rate({"server": [none, none]}, "attack_success_rate")
    with_verdicts = rate({"server": [yes, no]}, "attack_success_rate")
    entries = [found.to_json() for found in lead_by_one_judge([with_verdicts, alone])]
    assert [(entry["judge"], entry["value"]) for entry in entries] == [
        ("server", 0.5),
        ("server", None),
    ]


def test_one_judge_with_all_verdicts_needs_no_more_keys():
    found = rate({"a": [Verdict(refused=True)] * 2}, "refusal_rate", source=SOURCE, skipped=3)
    entry = found.to_json()
    assert "judges" not in entry and "disagreement" not in entry
    assert entry["source"] == SOURCE and entry["skipped"] == 3


def test_rows_keep_their_fields_and_gain_verdicts():
    verdict = Verdict(unsafe=True, refused=False, score=0.123456, note="why")
    (sample,) = make_samples([prompt(0, "Attack")], ["Goal"], [Response("Yes.")], {"a": [verdict]})
    row = sample.to_json()
    assert row["verdicts"] == {
        "a": {"unsafe": True, "refused": False, "score": 0.1235, "note": "why"}
    }
    assert (row["prompt"], row["request"], row["completion"]) == ("Attack", "Goal", "Yes.")
    assert {"id", "category", "refused", "score", "looping"} <= row.keys()
    assert "request" not in Sample("1", "", "p", "c", False, 0.0, False).to_json()


def test_judges_read_one_after_the_other_and_let_go():
    judges = [Says("a", lambda p, c: Verdict()), Says("b", lambda p, c: Verdict(refused=True))]
    told: list[str] = []
    pairs = {"x": [("p", "c")], "y": [("q", "d"), ("r", "e")]}
    found = judge_all(judges, pairs, lambda what, done, total: told.append(what))
    assert [v.refused for v in found["y"]["b"]] == [True, True]
    assert judges[0].read == [("p", "c"), ("q", "d"), ("r", "e")]
    assert judges[0].released == judges[1].released == 1


def scored(values: Sequence[float | None], **more: Any) -> Score:
    rows = [
        {"id": f"{n}", "category": "", "prompt": f"Q{n}", "completion": "", "score": value}
        for n, value in enumerate(values)
    ]
    return Score("x", more.pop("metric", "accuracy"), rows, SOURCE, **more)


def test_a_score_is_a_mean_with_an_interval():
    entry = scored([1.0, 0.0, 0.0, 0.0]).to_json()
    assert (entry["value"], entry["n"], entry["kind"]) == (0.25, 4, "capability")
    assert entry["judge"] is None and entry["ci95"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    wins = scored([1.0, 0.5, None], metric="win_rate", judge="endpoint").to_json()
    assert (wins["value"], wins["n"], wins["no_verdict"]) == (0.75, 2, 1)
    assert wins["ci95"] == [0.5, 1.0]
    assert scored([None]).to_json()["value"] is None


def test_the_same_prompts_are_compared_with_the_base():
    before = rate({"a": [Verdict(unsafe=True)] * 20}, "attack_success_rate")
    after = rate({"a": [Verdict(unsafe=False)] * 19 + [Verdict()]}, "attack_success_rate")
    found = versus_base(after.to_json(), after.rows(), before.to_json(), before.rows())
    assert found is not None
    assert (found["value"], found["n"]) == (-1.0, 19)
    assert found["p"] < 1e-4 and found["words"].startswith("-100.0 points")
    same = versus_base(before.to_json(), before.rows(), before.to_json(), before.rows())
    assert same is not None and same["words"].startswith("no detectable difference")
    json.dumps(found, allow_nan=False)


def test_scores_are_compared_with_the_base_too():
    before, after = scored([1.0, 1.0, 0.0]), scored([0.0, 1.0, 0.0])
    found = versus_base(after.to_json(), after.rows(), before.to_json(), before.rows())
    assert found is not None and found["value"] == pytest.approx(-1 / 3)


def test_what_was_not_measured_alike_is_not_compared():
    one = rate({"a": [Verdict(unsafe=True)] * 3}, "attack_success_rate")
    other_judge = rate({"b": [Verdict(unsafe=True)] * 3}, "attack_success_rate")
    fewer = rate({"a": [Verdict(unsafe=True)] * 2}, "attack_success_rate")
    silent = rate({"a": [Verdict()] * 3}, "attack_success_rate")
    elsewhere = rate({"a": [Verdict(unsafe=True)] * 3}, "attack_success_rate", source=SOURCE)

    def compare(after: Rate, before: Rate) -> Any:
        return versus_base(after.to_json(), after.rows(), before.to_json(), before.rows())

    assert versus_base(one.to_json(), one.rows(), None, []) is None
    assert compare(one, other_judge) is None
    assert compare(one, fewer) is None
    assert compare(fewer, one) is not None
    assert compare(silent, silent) is None
    assert compare(elsewhere, one) is None


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
    return {"harmful": PromptSet("harmful", "mine", [], [], [prompt(0), prompt(1)])}


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


def test_models_are_asked_what_the_judges_are_told(settings, own, variants, tmp_path):
    """The attack for the model and its goal for the judge; a begun answer is judged whole."""
    names = ["harmful", "advbench", "advbench+prefill", "jailbreaks"]
    suite = Suite.plan(names, settings, own)
    judge = Says("mine", lambda p, c: Verdict(unsafe=True, refused=False))
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


def test_a_second_evaluation_is_the_same_without_asking(
    settings, own, variants, tmp_path, monkeypatch
):
    suite = Suite.plan(["harmful", "prefill"], settings, own)
    first = suite.measure(variants, tmp_path / "cache")

    def none(*args: Any, **named: Any) -> None:
        raise AssertionError("the model was asked again")

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
    monkeypatch.setattr(suites, "_comparer", lambda settings, cache_dir: judge)
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


def test_without_answers_to_compare_with_it_is_said(settings, tmp_path, monkeypatch, variants):
    (tmp_path / "mine.json").write_text(json.dumps([{"instruction": "Say"}]))
    settings.evaluate.advanced.sources = {"alpaca-eval-win": str(tmp_path / "mine.json")}
    monkeypatch.setattr(suites, "_comparer", lambda settings, cache_dir: Longer())
    suite = Suite.plan(["alpaca-eval-win"], settings, {})
    with pytest.raises(InputError, match="no answers to compare with"):
        suite.measure(variants[2:], tmp_path / "cache")
    assert list(suite.measure(variants, tmp_path / "cache")["base"]) == []


def test_what_is_wrong_is_found_before_any_model(settings, own):
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
