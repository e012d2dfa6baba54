"""The plan of a training: the prompts of every step, fixed before training starts.

The plan is a list of rows in the order in which the trainer reads them, so that a resumed run
continues with the prompts of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from safesteer import distributed
from safesteer.config.settings import TrainSettings
from safesteer.distill.rows import check_repairs
from safesteer.errors import InputError
from safesteer.models.chat import ChatRenderer, Message


@dataclass(frozen=True)
class TrainingPrompts:
    """The prompts of a training, as chat messages."""

    harmful: Sequence[Sequence[Message]]  # on which the teacher teaches
    anchors: Sequence[Sequence[Message]] = ()  # harmless, on which the student is held to the base
    # Those of the anchors that the base wrongly refuses, and that the student learns to answer.
    repaired: Sequence[Sequence[Message]] = ()

    @property
    def kept(self) -> list[Sequence[Message]]:
        """The anchors that are not repaired."""
        repaired = set(map(_key, self.repaired))
        return [messages for messages in self.anchors if _key(messages) not in repaired]


class Plan(NamedTuple):
    """What a training reads."""

    rows: list[dict[str, Any]]  # of `plan_rows`, in the order in which the trainer reads them
    steps: int  # of the optimizer
    window: int  # steps whose rollouts are generated at once


def longest_prompt(settings: TrainSettings, chat: ChatRenderer) -> int:
    """The most tokens of a training prompt, which leave room for the longest prefill."""
    longest = settings.advanced.max_prompt_length
    if settings.prefill_share:
        longest -= max(len(chat.answer_ids(words)) for words in settings.advanced.prefills)
    return longest


def check_lengths(settings: TrainSettings, prompts: TrainingPrompts, chat: ChatRenderer) -> None:
    """Raise InputError if all prompts of a kind are too long to train on."""
    longest = longest_prompt(settings, chat)
    kinds = {"harmful prompt": prompts.harmful}
    if settings.anchors_per_step:
        kinds["anchor"] = prompts.anchors
    for kind, found in kinds.items():
        if found and not any(len(chat.ids(messages)) <= longest for messages in found):
            raise InputError(
                f"no {kind} of the training has at most {longest} tokens, as"
                f" train.advanced.max_prompt_length = {settings.advanced.max_prompt_length}"
                f" demands{' with prefills' if settings.prefill_share else ''}. Try: a larger one"
            )


def plan_training(
    settings: TrainSettings, prompts: TrainingPrompts, seed: int, repair: float = 0.0
) -> Plan:
    """Plan the rows of all processes, in complete generations; see `plan_rows`.

    Where prompts are repaired, each row carries its signed strength (`safesteer.distill.rows`):
    1, 0, or minus `repair`.

    Raises:
        InputError: more prompts would be repaired than there are harmful ones.
    """
    rows = plan_rows(settings, prompts.harmful, prompts.anchors, seed)
    if repaired := set(map(_key, prompts.repaired)):
        if not repair > 0:
            raise InputError(
                "wrong refusals are repaired with the direction of the teacher, and this teacher"
                " has none. Try: a steered teacher, or train.wrong_refusals=keep"
            )
        check_repairs(len(repaired), len(set(map(_key, prompts.harmful[: settings.num_prompts]))))
        for row in rows:
            wrong = row["anchor"] and _key(row["prompt"]) in repaired
            row["strength"] = -repair if wrong else float(not row["anchor"])
    per_step = settings.completions_per_step
    steps = len(rows) // per_step
    window = min(settings.steps_per_generation, steps)
    rows += rows[: -steps % window * per_step]  # completes the last window; not trained on
    return Plan(for_processes(rows, window * per_step, distributed.world_size()), steps, window)


def plan_rows(
    settings: TrainSettings,
    harmful: Sequence[Sequence[Message]],
    anchors: Sequence[Sequence[Message]],
    seed: int,
) -> list[dict[str, Any]]:
    """Deal the prompts to steps, one row per completion.

    Each step holds `prompts_per_step` different prompts, `anchor_share` of them anchors, each
    repeated `num_generations` times. Prompts are dealt in shuffled order, every one once before
    any comes again. `prefill_share` of either kind, counted over all steps, gets a prefill.

    Returns:
        Rows {"prompt": chat messages, "anchor": bool, "prefill": str}.

    Raises:
        InputError: there are no harmful prompts, or no anchors although a share is set.
    """
    anchors_per_step = settings.anchors_per_step
    harmful_per_step = settings.prompts_per_step - anchors_per_step
    if not harmful:
        raise InputError(
            "no harmful training prompts are left to train on. Try: more prompts, or a larger"
            " train.advanced.max_prompt_length"
        )
    if anchors_per_step and not anchors:
        raise InputError(
            f"train.anchor_share = {settings.anchor_share}, and there are no harmless prompts for"
            " anchors. Try: train.anchor_share=0, or harmless prompts"
        )
    pool = list(harmful)[: settings.num_prompts]
    steps = settings.max_steps or math.ceil(len(pool) / harmful_per_step)
    generator = random.Random(seed)
    deal_harmful = _deal(pool, harmful_per_step, generator)
    deal_anchors = _deal(list(anchors), anchors_per_step, generator)
    prefiller = random.Random(seed + 1)  # its own, so that prefills do not change the prompts
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        for hand, anchor in ((next(deal_harmful), False), (next(deal_anchors), True)):
            prefills = _prefills(settings, len(hand), step, prefiller)
            rows += [
                {"prompt": [dict(each) for each in messages], "anchor": anchor, "prefill": words}
                for messages, words in zip(hand, prefills, strict=True)
                for _ in range(settings.num_generations)
            ]
    return rows


def _key(messages: Sequence[Message]) -> str:
    return json.dumps([dict(message) for message in messages], sort_keys=True)


def _prefills(
    settings: TrainSettings, count: int, step: int, generator: random.Random
) -> list[str]:
    """The prefills of `count` prompts of a step, most of them empty.

    A share of less than one prompt per step is one prompt in some of the steps.
    """
    before, after = (
        int(round(settings.prefill_share * count * hands, 9)) for hands in (step, step + 1)
    )
    prefilled = after - before
    prefills = []
    for _ in range(prefilled):
        words = generator.choice(settings.advanced.prefills)
        ends = [word.end() for word in re.finditer(r"\S+", words)]
        prefills.append(words[: generator.choice(ends[1:] or ends)])  # two words at least
    return prefills + [""] * (count - prefilled)


def completions_per_process(settings: TrainSettings, processes: int) -> int:
    """Completions of a step on each process; InputError if they cannot be shared evenly."""
    per_step = settings.completions_per_step
    if per_step % processes:
        raise InputError(
            f"train.prompts_per_step x train.num_generations = {per_step} completions cannot be"
            f" shared evenly by {processes} processes. Try: another value of one of the three"
        )
    return per_step // processes


def for_processes(rows: list[Any], window: int, processes: int) -> list[Any]:
    """Order `rows` so that every process reads an even share of each step.

    Each gets a slice of every window (rows that are read at once), made of its every n-th row, so
    that its share of a step holds harmful prompts and anchors as the step does.
    """
    return [
        row
        for start in range(0, len(rows), window)
        for process in range(processes)
        for row in rows[start : start + window][process::processes]
    ]


def _deal(items: list[Any], count: int, generator: random.Random) -> Iterator[list[Any]]:
    """Hands of `count` items, every item once before any comes again, different within a hand.

    Where there are fewer than `count` items, a hand holds some of them several times.
    """
    deck: list[Any] = []
    while True:
        while len(deck) < count:
            order = list(range(len(items)))
            generator.shuffle(order)
            # What is left of the last round is dealt first, and comes late in the new one.
            left = set(deck)
            deck += [index for index in order if index not in left]
            deck += [index for index in order if index in left]
        yield [items[index] for index in deck[:count]]
        deck = deck[count:]
