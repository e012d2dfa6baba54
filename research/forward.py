"""Gain of running the common prefix of a batch once.

    python -m research.forward [MODEL] [--rows 2,4,8,16,32] [--new-tokens 5] [--repeats 7]

Hidden states of prompts, and answers of a few tokens to them, with `share_prefix` and without, in
turns. Prints medians, their ratio, the tokens that were saved, and the distance of the hidden
states at the last position as a share of their norm (rounding in the model's dtype).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from bench.command_line import numbers, run_script
from bench.inputs import harmful_prompts
from bench.tables import table_head, table_row
from bench.timing import in_turns, timed
from safesteer.models import hidden_states as forward
from safesteer.models.chat import pad_left
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import hidden_states, share_prefix
from safesteer.models.load import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", default="2,4,8,16,32")
    parser.add_argument("--new-tokens", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)


@torch.no_grad()
def run(arguments: argparse.Namespace) -> None:
    """Print one row per batch size."""
    model = load_model(arguments.model)
    prompts = [model.chat.ids(messages) for messages in harmful_prompts()]
    columns = ("hidden states, s", "ratio", "answers, s", "ratio", "distance")
    print(table_head("rows", "tokens", "saved", *columns))
    for rows in numbers(arguments.rows):
        batch = prompts[:rows]
        ids, mask = pad_left(batch, model.tokenizer.pad_token_id, model.model.device)
        switch_sharing(True)
        shared = share_prefix(model.model, ids, mask)
        saved = shared.length * (rows - 1) if shared is not None else 0
        last = []
        for on in (False, True):
            switch_sharing(on)
            last.append(hidden_states(model.model, ids, mask)[:, -1].float())
        distance = ((last[0] - last[1]).norm() / last[0].norm()).item()
        cells = []
        for work in (
            partial(hidden_states, model.model, ids, mask),
            partial(
                *(generate, model.model, model.tokenizer, batch, Decoding(arguments.new_tokens)),
                batch_size=rows,
            ),
        ):
            without, sharing = seconds(work, arguments.repeats)
            cells += [f"{without:.3f} -> {sharing:.3f}", f"{sharing / without:.2f}"]
        print(table_row(rows, int(mask.sum()), saved, *cells, f"{distance:.1%}"), flush=True)


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of `work` without and with sharing; the first round warms up."""

    def measure(on: bool) -> float:
        switch_sharing(on)
        return timed(work)[1]

    found = in_turns((False, True), measure, repeats + 1)
    return [statistics.median(values[1:]) for values in found.values()]


def switch_sharing(on: bool) -> None:
    """Share every common prefix, or none."""
    forward._WORTHWHILE = {"cpu": 1 if on else 1 << 60}
    forward._WORTHWHILE_ELSEWHERE = 1 if on else 1 << 60


if __name__ == "__main__":
    run_script("research.forward")
