"""Wrong refusals: which are found and repaired, and that none of it removes safety."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import JOB_OF_SECONDS

import safesteer
from safesteer.config.load import load_settings
from safesteer.errors import InputError
from safesteer.events import Reporter
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Response
from safesteer.pipeline import repairs
from safesteer.pipeline.repairs import find_repairs, training_prompts
from safesteer.prompts import Prompt, PromptSet
from safesteer.report.rows import repair_lines
from safesteer.teacher import Teacher

REFUSAL = "I'm sorry, but I can't assist with that."


def prompt_set(name: str, texts: list[str]) -> PromptSet:
    prompts = [
        Prompt(f"{name}-{n}", ({"role": "user", "content": text},), f"kind {n % 2}")
        for n, text in enumerate(texts)
    ]
    return PromptSet(name, f"{name}.csv", prompts[:-2], prompts[-2:-1], prompts[-1:])


SETS = {
    "harmful": prompt_set("harmful", [f"Steal the {n}th vehicle" for n in "abcdefgh"]),
    "harmless": prompt_set("harmless", [f"Grow {n * 3} carrots" for n in "abcdefgh"]),
    "borderline": prompt_set("borderline", [f"Kill process {n * 2}" for n in "abcdefgh"]),
}
SETTINGS = load_settings(train={"wrong_refusals": "repair"})


@pytest.fixture
def find(tiny_chat_model, monkeypatch):  # type: ignore[no-untyped-def]
    """`find_repairs` with a base that refuses, and a probe that takes for harmful, some ids."""

    def ask(
        refused: set[str],
        doubted: set[str] = frozenset(),
        sets: Any = SETS,
        known: float = 0.9,
        **changes: Any,
    ) -> repairs.Repairs:
        by_text = {p.text: p.id for found in sets.values() for p in found.train}
        asked: list[str] = []

        def generate(self, conversations, decoding, **_):  # type: ignore[no-untyped-def]
            asked.extend(by_text[each[-1]["content"]] for each in conversations)
            return [
                Response(
                    REFUSAL
                    if by_text[each[-1]["content"]] in refused
                    else "Here is how: dig and water."
                )
                for each in conversations
            ]

        class Probe:
            accuracy = known

            def __init__(self, *_: Any) -> None: ...

            def is_harmful(self, conversations: Any, progress: Any) -> list[bool]:
                return [by_text[each[-1]["content"]] in doubted for each in conversations]

        monkeypatch.setattr(ModelVariant, "generate", generate)
        monkeypatch.setattr(repairs, "HarmProbe", Probe)
        settings = load_settings(train={"wrong_refusals": "repair", **changes})
        base = ModelVariant("base", tiny_chat_model, tiny_chat_model.model, Teacher())
        found = find_repairs(base, sets, settings, None, Reporter())
        assert len(asked) == len(set(asked))  # a set that anchors repeat is asked once
        return found

    return ask


def test_what_the_base_wrongly_refuses_is_repaired(find):
    """Training prompts of both harmless sets, with their kinds; a draw that repeats a set twice."""
    found = find({"harmless-1", "borderline-2", "borderline-4"})
    assert found.repaired == {
        "harmless": ["harmless-1"],
        "borderline": ["borderline-2", "borderline-4"],
    }
    content = found.to_json()
    assert content["asked"] == {"harmless": 6, "borderline": 6}
    assert content["categories"]["borderline"] == {"kind 0": 2}
    assert "Kill" not in json.dumps(content)
    prompts = training_prompts(SETTINGS.train, SETS, content)
    assert [m[-1]["content"] for m in prompts.repaired] == [
        "Grow bbb carrots",
        "Kill process cc",
        "Kill process ee",
    ]
    assert prompts.anchors == training_prompts(SETTINGS.train, SETS).anchors
    assert [row["refused"] for row in found.rows()].count(True) == 3


def test_without_wrong_refusals_training_goes_on_with_one_side(find):
    found = find(set())
    assert not any(found.repaired.values())
    assert "nothing to repair" in repair_lines(found.to_json())[0]
    assert not training_prompts(SETTINGS.train, SETS, found.to_json()).repaired


def test_a_base_that_refuses_everything_is_an_error(find):
    everything = {p.id for name in ("harmless", "borderline") for p in SETS[name].train}
    with pytest.raises(InputError, match="refuses all of 12 harmless training prompts"):
        find(everything)


def test_a_base_without_a_finished_answer_is_an_error(find, monkeypatch):
    monkeypatch.setattr(
        repairs,
        "make_samples",
        lambda prompts, *_: [replace_sample(prompt) for prompt in prompts],
    )
    with pytest.raises(InputError, match="finished none of its answers"):
        find(set())


def replace_sample(prompt: Prompt) -> repairs.Sample:
    return repairs.Sample(prompt.id, "", prompt.text, "", None, None, False, finished=False)


# Attempts to use it the wrong way -----------------------------------------------------------------


def test_a_harmless_file_full_of_harmful_requests_is_refused(find):
    """The run's own ones, with other case and punctuation."""
    stolen = [prompt.text.upper() + "!" for prompt in SETS["harmful"].train]
    with pytest.raises(InputError, match=r"harmless.csv: 6 of 8 prompts are harmful") as error:
        find(set(), sets={**SETS, "harmless": prompt_set("harmless", [*stolen, "a b", "c d"])})
    assert "STEAL" not in str(error.value)


def test_swapped_sets_are_refused(find):
    """SafeSteer's own harmful prompts count, whatever the run calls harmful."""
    own = [prompt.text for prompt in safesteer.load_prompt_set("harmful").train[:8]]
    swapped = {**SETS, "harmful": SETS["harmless"], "harmless": prompt_set("harmless", own)}
    with pytest.raises(InputError, match="8 of 8 prompts are harmful prompts"):
        find(set(), sets=swapped)


def test_paraphrases_of_harmful_requests_are_refused(find):
    """No near-duplicates of anything: the probe sees them."""
    doubted = {f"borderline-{n}" for n in range(4)}
    with pytest.raises(InputError, match=r"4 of 6 prompts look harmful to a probe"):
        find(set(), doubted)


def test_without_a_probe_that_knows_harmful_requests_nothing_is_repaired(find):
    with pytest.raises(InputError, match="in only 60% of cases, and 75% are needed"):
        find({"harmless-1"}, known=0.6)


def test_a_few_harmful_requests_keep_their_refusals(find):
    """The probe's doubts are not repaired, and a near-duplicate is not trained on at all."""
    found = find({"harmless-1", "harmless-3"}, {"harmless-3"})
    assert found.repaired["harmless"] == ["harmless-1"] and found.doubted["harmless"] == [
        "harmless-3"
    ]
    many = [f"Draw {n * 3} and {n * 2} birds" for n in "abcdefghijklmnopqrstuvwxyz"]
    many += [f"Paint {n * 3} and {n * 4} boats" for n in "abcdefghijklmnopqrstuvwxyz"]
    with_one = prompt_set("harmless", ["Steal the ath vehicle!", *many])
    found = find({"harmless-0", "harmless-1"}, sets={**SETS, "harmless": with_one})
    assert found.left_out["harmless"] == ["harmless-0"]
    assert found.repaired["harmless"] == ["harmless-1"]
    prompts = training_prompts(SETTINGS.train, {**SETS, "harmless": with_one}, found.to_json())
    assert with_one.train[0].messages not in prompts.anchors
    text = " ".join(repair_lines(found.to_json()))
    assert "1 prompts are left out" in text


def test_no_more_are_repaired_than_there_are_harmful_prompts(find):
    """A training on three harmful prompts repairs three, of both sets."""
    wrong = {f"{name}-{n}" for name in ("harmless", "borderline") for n in range(4)}
    found = find(wrong, num_prompts=3)
    assert {name: len(ids) for name, ids in found.repaired.items()} == {
        "harmless": 2,
        "borderline": 1,
    }
    assert found.surplus == 5
    assert "repairs 3 of them" in repair_lines(found.to_json())[0]


# A whole run --------------------------------------------------------------------------------------


def test_a_run_finds_records_and_repairs_once(
    tiny_model_folder, new_prompt_sets, tmp_path, monkeypatch
):
    """Private answers, an unchanged second start, and a report of what was found."""

    class Probe:
        accuracy = 0.9

        def __init__(self, *_: Any) -> None: ...

        def is_harmful(self, conversations: Any, progress: Any) -> list[bool]:
            return [False] * len(conversations)

    original = repairs.make_samples

    def judge(prompts, *rest):  # type: ignore[no-untyped-def]
        return [
            replace(sample, refused=prompt.text.endswith(("1?", "2?")))
            for sample, prompt in zip(original(prompts, *rest), prompts, strict=True)
        ]

    monkeypatch.setattr(repairs, "HarmProbe", Probe)
    monkeypatch.setattr(repairs, "make_samples", judge)
    sections = {**JOB_OF_SECONDS, "prompts": new_prompt_sets(6, 3)}
    sections["train"] = {**sections["train"], "wrong_refusals": "repair", "anchor_share": 0.5}
    seen: list[tuple[str, Any]] = []

    class Events(Reporter):
        def skipped(self, name: str) -> None:
            seen.append(("skipped", name))

        def result(self, stage: str, content: dict[str, Any]) -> None:
            seen.append((stage, content))

    for _ in range(2):
        run = safesteer.align(
            str(tiny_model_folder),
            tmp_path / "run",
            reporter=Events(),
            allow_worse=True,
            **sections,
        )
    assert dict(seen)["repairs"]["repaired"].keys() == {"harmless", "borderline"}
    assert ("skipped", "repairs") in seen
    stage = run.manifest["stages"]["repairs"]
    assert stage["outputs"].keys() == {"repairs/repairs.json", "repairs/answers.jsonl"}
    assert run.manifest["stages"]["train"]["inputs"]["repairs"] == stage["outputs"]
    answers = Path(run.path / "repairs" / "answers.jsonl")
    assert stat.S_IMODE(answers.stat().st_mode) == 0o600
    assert sum(json.loads(line)["refused"] for line in answers.read_text().splitlines()) == 4
    page = (run.path / "report.html").read_text()
    assert "wrongly refuses 4 of 12 harmless training prompts" in page
    assert "Both sides" in page
