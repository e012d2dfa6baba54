"""Which prompts each update answers, fixed before training starts.

The plan is a list of rows in the order in which the trainer reads them, so that a resumed run
continues with exactly the prompts that an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from safesteer.config.settings import TrainSettings
from safesteer.errors import InputError
from safesteer.models.chat import Message


def plan_rows(
    settings: TrainSettings,
    harmful: Sequence[Sequence[Message]],
    anchors: Sequence[Sequence[Message]],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows {"prompt": messages, "anchor": bool, "begun": text}, one per completion of the updates.

    Each step holds `prompts_per_step` different prompts, `anchor_share` of them harmless, each
    repeated `num_generations` times. Prompts are dealt in shuffled order, every one once before
    any comes again. Of `prefill_share` of either kind, counted over all updates, the answer is
    begun with compliant words.

    Raises InputError when there are no harmful prompts, or no anchors although a share is set.
    """
    anchors_per_update = settings.anchors_per_step
    harmful_per_update = settings.prompts_per_step - anchors_per_update
    if not harmful:
        raise InputError("no harmful training prompts are left to train on")
    if anchors_per_update and not anchors:
        raise InputError("train.anchor_share is set but there are no harmless prompts for anchors")
    pool = list(harmful)[: settings.num_prompts]
    updates = settings.max_steps or math.ceil(len(pool) / harmful_per_update)
    generator = random.Random(seed)
    draw_harmful = _deal(pool, harmful_per_update, generator)
    draw_anchors = _deal(list(anchors), anchors_per_update, generator)
    begin = random.Random(seed + 1)  # apart, so that the prompts are the same with and without
    rows: list[dict[str, Any]] = []
    for update in range(updates):
        prompts = [
            (messages, anchor, words)
            for hand, anchor in ((next(draw_harmful), False), (next(draw_anchors), True))
            for messages, words in zip(
                hand, _beginnings(settings, len(hand), update, begin), strict=True
            )
        ]
        rows += [
            {"prompt": [dict(message) for message in messages], "anchor": anchor, "begun": words}
            for messages, anchor, words in prompts
            for _ in range(settings.num_generations)
        ]
    return rows


def _beginnings(
    settings: TrainSettings, count: int, update: int, generator: random.Random
) -> list[str]:
    """How the answers to the prompts of a hand are begun: with nothing, but for a share of them.

    A share of less than one prompt of an update is one of some updates.
    """
    before, after = (
        int(round(settings.prefill_share * count * hands, 9)) for hands in (update, update + 1)
    )
    begun = after - before
    words = []
    for _ in range(begun):
        prefill = generator.choice(settings.advanced.prefills)
        ends = [word.end() for word in re.finditer(r"\S+", prefill)]
        words.append(prefill[: generator.choice(ends[1:] or ends)])  # two words at least
    return words + [""] * (count - begun)


def completions_per_process(settings: TrainSettings, processes: int) -> int:
    """How many completions of an update each of so many processes makes.

    Raises InputError when they are not the same number.
    """
    per_update = settings.completions_per_step
    if per_update % processes:
        raise InputError(
            f"train.prompts_per_step x train.num_generations = {per_update} completions cannot be"
            f" shared evenly by {processes} processes. Try: another value of one of the three"
        )
    return per_update // processes


def for_processes(rows: list[Any], window: int, processes: int) -> list[Any]:
    """`rows` in the order in which processes read them, each a slice of every `window` rows.

    Each process gets every n-th row, so that its part of an update holds harmful prompts and
    anchors as the update does, and an update over all processes holds what the plan says.
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
            # What is left of the last round goes first, and comes late in the new one.
            left = set(deck)
            deck += [index for index in order if index not in left]
            deck += [index for index in order if index in left]
        yield [items[index] for index in deck[:count]]
        deck = deck[count:]
