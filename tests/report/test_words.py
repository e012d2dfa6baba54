"""Words for figures: metrics by judge, directions, values with intervals."""

from __future__ import annotations

from typing import Any

import pytest

from safesteer.report.words import (
    better_words,
    duration,
    figure,
    judged_by,
    metric_words,
    number,
    percent,
    place_words,
    size,
    thinking_words,
    title,
    value_text,
    without_verdict,
)


def entry(metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "ci95": [0.1, 0.3], "n": 20, **more}


def test_attack_success_takes_a_judge_of_harm():
    """The offline judge only sees whether an answer refuses."""
    attacks = entry("attack_success_rate", 0.2, kind="safety")
    assert metric_words({**attacks, "judge": "llama-guard-3"}) == "attack success"
    assert metric_words({**attacks, "judge": "offline-refusal"}) == "not refused"
    assert better_words(attacks) == "lower is better"


@pytest.mark.parametrize(
    ("name", "metric", "kind", "words"),
    [
        ("harmful", "refusal_rate", "safety", "harmful requests refused: higher is better"),
        ("harmless", "refusal_rate", "over_refusal", "harmless requests refused: lower is better"),
        ("xstest-safe", "refusal_rate", "over_refusal", "xstest-safe: refused: lower is better"),
        ("mmlu", "accuracy", "capability", "mmlu: accuracy: higher is better"),
        (
            "alpaca-eval-win",
            "win_rate",
            "capability",
            "alpaca-eval-win: win rate: higher is better",
        ),
        (
            "agreement",
            "next_token_agreement",
            "capability",
            "same next token as the base: higher is better",
        ),
        (
            "divergence",
            "kl_base_aligned",
            "capability",
            "KL(base ‖ aligned) per token: lower is better",
        ),
    ],
)
def test_titles_and_directions(name, metric, kind, words):
    shown = entry(metric, 0.2, kind=kind)
    assert f"{title(name, shown)}: {better_words(shown)}" == words


def test_a_figure_has_its_interval_its_number_and_its_gaps():
    refused = entry("refusal_rate", 0.2, judge="guard")
    assert figure(refused) == "20.0% (10-30; 20)"
    assert figure(refused, count=False) == "20.0% (10-30)"
    assert figure({**refused, "no_verdict": 2}) == "20.0% (10-30; 20; 2 without verdict)"
    assert figure(entry("kl_base_aligned", 0.2)) == "0.200 nats (0.100-0.300; 20)"
    assert figure({**refused, "value": None}) == "no verdict"
    assert figure(None) == ""
    assert value_text(entry("next_token_agreement", 0.95, dtype="bfloat16")) == "95.0% in bfloat16"


def test_another_judge_has_its_own_figure():
    judges = {"a": {"value": 0.2, "ci95": [0.1, 0.3], "n": 20, "no_verdict": 1}}
    judged = entry("attack_success_rate", 0.4, judge="b", kind="safety", judges=judges)
    assert figure(judged_by("a", judged)) == "20.0% (10-30; 20; 1 without verdict)"
    assert judged_by("c", judged) is None and judged_by("a", None) is None
    assert without_verdict({**judged, "judge": "a"}) == 1 and without_verdict(judged) == 0


def test_numbers_durations_and_sizes():
    assert [percent(0.0667), percent(0.49, 0)] == ["6.7%", "49%"]
    assert [number(x) for x in (0.0, 0.00123, 12.345, 1e-7, None)] == [
        "0", "0.00123", "12.3", "1.0e-07", "",
    ]  # fmt: skip
    assert [duration(x) for x in (7, 125, 3720)] == ["7 s", "2 min 05 s", "1 h 02 min"]
    assert [size(x) for x in (900, 5e5, 1.24e9)] == ["900 B", "500 KB", "1.2 GB"]


def test_places_and_thinking():
    place = {"layer": 9, "coefficient": 1.2}
    assert place_words(place) == "layer 9, strength 1.2"
    assert place_words({**place, "position": -1}) == "layer 9, strength 1.2, position -1"
    record = {"on": False, "template_kwargs": {"enable_thinking": False}, "appended": ""}
    assert thinking_words(None) == ""
    assert "template arguments: enable_thinking=False" in thinking_words(record)
    assert thinking_words({**record, "template_kwargs": {}}) == "thinking is off by default"
    assert thinking_words({**record, "on": True}).startswith("thinking is on")
