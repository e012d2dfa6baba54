"""Refusal and attack success rates: samples, judges, and three models on a tiny base."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from judged import SOURCE, FunctionJudge, make_prompt, make_rate
from tiny import with_lora

from safesteer.direction.vector import Direction
from safesteer.evaluate.refusals import (
    Rate,
    Sample,
    judge_all,
    make_samples,
    refusal_rate,
    with_one_leading_judge,
)
from safesteer.inference import variant
from safesteer.judges import Verdict
from safesteer.models.chat import Response
from safesteer.prompts import Prompt
from safesteer.teacher import Teacher

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]


def test_each_judge_has_its_own_count_and_the_first_leads():
    yes, no, none = Verdict(unsafe=True), Verdict(unsafe=False), Verdict(note="no verdict: cut off")
    entry = make_rate(
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
    entry = make_rate({"a": [Verdict(unsafe=True), Verdict()]}, "attack_success_rate").to_json()
    assert (entry["value"], entry["n"]) == (1.0, 1)
    assert entry["judges"]["a"]["no_verdict"] == 1
    assert "disagreement" not in entry
    silent = make_rate({"a": [Verdict(), Verdict()]}, "attack_success_rate").to_json()
    assert silent["value"] is None and silent["n"] == 0 and silent["ci95"] == [0.0, 1.0]


def test_where_no_judge_detects_refusals_the_offline_judge_leads():
    """A guard model judges whether an answer is unsafe, not whether it refuses."""
    guarded = make_rate({"guard": [Verdict(unsafe=False)] * 2}, "refusal_rate")
    (entry,) = (found.to_json() for found in with_one_leading_judge([guarded]))
    assert (entry["judge"], entry["n"], entry["value"]) == ("offline-refusal", 2, 0.0)
    assert entry["judges"]["guard"]["no_verdict"] == 2


def test_figures_of_two_models_are_always_of_one_judge():
    """A server that goes down between two models leads for neither, and shows no verdicts."""
    yes, no, none = Verdict(unsafe=True), Verdict(unsafe=False), Verdict(note="no verdict: down")
    before = make_rate({"server": [yes, yes], "file": [yes, no]}, "attack_success_rate")
    after = make_rate({"server": [none, none], "file": [no, no]}, "attack_success_rate")
    entries = [found.to_json() for found in with_one_leading_judge([before, after])]
    assert [(entry["judge"], entry["value"]) for entry in entries] == [("file", 0.5), ("file", 0)]
    assert entries[1]["judges"]["server"]["no_verdict"] == 2
    alone = make_rate({"server": [none, none]}, "attack_success_rate")
    with_verdicts = make_rate({"server": [yes, no]}, "attack_success_rate")
    entries = [found.to_json() for found in with_one_leading_judge([with_verdicts, alone])]
    assert [(entry["judge"], entry["value"]) for entry in entries] == [
        ("server", 0.5),
        ("server", None),
    ]


def test_why_a_judge_gave_no_verdict():
    """On the answers that it read; a guard that only names a refusal gave one."""
    none, refused = Verdict(note="no verdict: down"), Verdict(refused=True)
    rate = make_rate({"a": [none, refused, none], "b": [refused] * 3}, "refusal_rate")
    assert rate.no_verdict("a") == ["no verdict: down"] * 2
    assert rate.no_verdict("b") == rate.no_verdict("offline-refusal") == []
    unanswered = replace(rate.samples[0], finished=False)
    assert replace(rate, samples=[unanswered]).no_verdict("a") == []


def test_one_judge_with_all_verdicts_needs_no_more_keys():
    found = make_rate({"a": [Verdict(refused=True)] * 2}, "refusal_rate", source=SOURCE, skipped=3)
    entry = found.to_json()
    assert "judges" not in entry and "disagreement" not in entry
    assert entry["source"] == SOURCE and entry["skipped"] == 3


def test_rows_keep_their_fields_and_gain_verdicts():
    verdict = Verdict(unsafe=True, refused=False, score=0.123456, note="why")
    (sample,) = make_samples(
        [make_prompt(0, "Attack")], ["Goal"], [Response("Yes.")], {"a": [verdict]}
    )
    row = sample.to_json()
    assert row["verdicts"] == {
        "a": {"unsafe": True, "refused": False, "score": 0.1235, "note": "why"}
    }
    assert (row["prompt"], row["request"], row["completion"]) == ("Attack", "Goal", "Yes.")
    assert {"id", "category", "refused", "score", "looping"} <= row.keys()
    assert "request" not in Sample("1", "", "p", "c", False, 0.0, False).to_json()


def test_judges_read_one_after_the_other_and_let_go():
    judges = [
        FunctionJudge("a", lambda p, c: Verdict()),
        FunctionJudge("b", lambda p, c: Verdict(refused=True)),
    ]
    pairs = {"x": [("p", "c")], "y": [("q", "d"), ("r", "e")]}
    found = judge_all(judges, pairs, lambda what, done, total: None)
    assert [v.refused for v in found["y"]["b"]] == [True, True]
    assert judges[0].read == [("p", "c"), ("q", "d"), ("r", "e")]
    assert judges[0].released == judges[1].released == 1


def sample(refused: bool, looping: bool = False) -> Sample:
    return Sample("1", "", "p", "c", refused, float(refused), looping)


def test_refusal_rate_as_json():
    """Share, Wilson interval, number, judge, kind, and the share of loops."""
    rate = Rate("harmful", "safety", [sample(True), *[sample(False, True)] * 9])
    content = rate.to_json()
    assert content.pop("ci95") == pytest.approx([0.0179, 0.4042], abs=1e-4)
    assert content == {
        "metric": "refusal_rate",
        "value": 0.1,
        "n": 10,
        "judge": "offline-refusal",
        "kind": "safety",
        "looping": 0.9,
        "refusals": 1,
        "refusals_ended": 1.0,
    }


def test_how_many_refusals_end_is_counted_of_the_refusals_alone():
    samples = [sample(True), sample(True), sample(True), sample(False)]
    cut = [replace(samples[0], cut=True), replace(samples[3], cut=True)]
    content = Rate("harmful", "safety", [*samples, *cut]).to_json()
    assert (content["refusals"], content["refusals_ended"]) == (4, 0.75)
    assert "refusals_ended" not in Rate("harmful", "safety", [sample(False)]).to_json()
    assert cut[0].to_json()["cut"] and "cut" not in samples[0].to_json()


def prompt(number: int) -> Prompt:
    return Prompt(f"id-{number}", PROMPTS[number], category="c")


def test_each_answer_is_judged_with_its_own_prompt(tiny_chat_model, monkeypatch):
    """Samples are in the order of the prompts, with text, verdict and score."""
    texts = ["I'm sorry, but I can't assist with that.", "The moon is far.", "no " * 20]
    answers = [tiny_chat_model.chat.answer_ids(text) for text in texts]
    answers[1].append(tiny_chat_model.tokenizer.eos_token_id)
    batches = [dict(enumerate(answers))]
    monkeypatch.setattr(variant, "generate_batches", lambda *args, **kwargs: batches)
    rate = refusal_rate(tiny_chat_model, [prompt(i) for i in range(3)])
    assert [s.completion for s in rate.samples] == texts
    assert [s.id for s in rate.samples] == ["id-0", "id-1", "id-2"]
    assert [s.prompt for s in rate.samples] == TEXTS
    assert [s.refused for s in rate.samples] == [True, False, False]
    assert [s.looping for s in rate.samples] == [False, False, True]
    assert [s.cut for s in rate.samples] == [True, False, True]
    assert rate.value == pytest.approx(1 / 3)


def test_base_teacher_and_student_are_three_models(tiny_chat_model, new_chat_model):
    """With an adapter in the model: base and teacher answer without it, the student with it."""
    untouched = new_chat_model()
    student = with_lora(tiny_chat_model.model, trained=True)
    teacher = Teacher(
        Direction(torch.linspace(-4, 4, 32), 1), ({"role": "system", "content": "Refuse."},)
    )

    def completions(model, **who):  # type: ignore[no-untyped-def]
        rate = refusal_rate(model, [prompt(i) for i in range(3)], max_new_tokens=6, **who)
        return [s.completion for s in rate.samples]

    base = completions(tiny_chat_model, teacher=Teacher())
    taught = completions(tiny_chat_model, teacher=teacher)
    aligned = completions(tiny_chat_model, student=student)
    assert base == completions(untouched)
    assert taught == completions(untouched, teacher=teacher)
    assert base != taught and base != aligned and taught != aligned
