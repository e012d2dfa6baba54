"""What it brings to run the common beginning of a batch once.

    python bench/forward.py [MODEL] [--rows 2,4,8,16,32] [--new-tokens 5] [--repeats 7]

Hidden states of the prompts, and answers of a few tokens to them, with `share_prefix` and without,
taking turns. Prints medians, their ratio, the tokens that were saved, and how far the hidden states
at the last position are apart (of their norm; rounding in the model's type).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from safesteer.cli.silence import silence_libraries
from safesteer.models import hidden_states as forward
from safesteer.models.chat import pad_left
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import hidden_states, share_prefix
from safesteer.models.load import load_model
from safesteer.prompts import load_prompt_set


def alternate(work: Callable[[], object], repeats: int) -> dict[bool, float]:
    """Median seconds of `work` with sharing off and on, taking turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for on in (False, True):
            _switch(on)
            start = time.perf_counter()
            work()
            times[on].append(time.perf_counter() - start)
    return {on: statistics.median(values[1:]) for on, values in times.items()}


def _switch(on: bool) -> None:
    forward._WORTHWHILE = {"cpu": 1 if on else 1 << 60}
    forward._WORTHWHILE_ELSEWHERE = 1 if on else 1 << 60


def main() -> None:
    """Print one row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", default="2,4,8,16,32")
    parser.add_argument("--new-tokens", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    model = load_model(arguments.model)
    prompts = [model.chat.ids(p.messages) for p in load_prompt_set("harmful").train]
    pad, device = model.tokenizer.pad_token_id, model.model.device
    print("| rows | tokens, of them saved | states, s | ratio | answers, s | ratio | apart |")
    print("|---|---|---|---|---|---|---|")
    for rows in map(int, arguments.rows.split(",")):
        ids, mask = pad_left(prompts[:rows], pad, device)
        with torch.no_grad():
            _switch(True)
            shared = share_prefix(model.model, ids, mask)
            saved = shared.length * (rows - 1) if shared is not None else 0
            last = []
            for on in (False, True):
                _switch(on)
                last.append(hidden_states(model.model, ids, mask)[:, -1].float())
            apart = ((last[0] - last[1]).norm() / last[0].norm()).item()

            def states(ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> torch.Tensor:
                return hidden_states(model.model, ids, mask)

            def answers(rows: int = rows) -> list[list[int]]:
                return generate(
                    model.model,
                    model.tokenizer,
                    prompts[:rows],
                    Decoding(arguments.new_tokens),
                    batch_size=rows,
                )

            a, b = alternate(states, arguments.repeats), alternate(answers, arguments.repeats)
        print(
            f"| {rows} | {int(mask.sum())}, {saved} | {a[False]:.3f} -> {a[True]:.3f} |"
            f" {a[True] / a[False]:.2f} | {b[False]:.3f} -> {b[True]:.3f} |"
            f" {b[True] / b[False]:.2f} | {apart:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
