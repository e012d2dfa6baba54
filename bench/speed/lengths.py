"""Cost of one long prompt among short ones, in a direction pass and in generation.

    python -m bench.speed lengths [MODEL] [--short 31] [--words 20] [--long 900] [--new 16]
        [--repeats 3]

`short` reads prompts of about `--words` tokens, `mixed` the same and one of about `--long`; they
take turns. Prints median seconds, and how many times dearer the mixed set is: in time, and in
tokens without any padding.
"""

from __future__ import annotations

import argparse
import statistics

from bench.tables import table_head, table_row
from bench.timing import in_turns, timed
from safesteer.direction.activations import prompt_means
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--short", type=int, default=31)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--long", type=int, default=900)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)


def run(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    short = [
        [{"role": "user", "content": f"{number}" + " and" * args.words}]
        for number in range(args.short)
    ]
    sets = {"short": short, "mixed": [*short, [{"role": "user", "content": " so" * args.long}]]}
    ids = {name: [model.chat.ids(m) for m in prompts] for name, prompts in sets.items()}

    def direction(name: str) -> float:
        return timed(lambda: prompt_means(model, sets[name], 4))[1]

    def answers(name: str) -> float:
        decoding = Decoding(args.new)
        return timed(
            lambda: generate(model.model, model.tokenizer, ids[name], decoding, batch_size=32)
        )[1]

    print(table_head("", "short", "mixed", "times dearer", "in tokens"))
    tokens = {name: sum(map(len, rows)) for name, rows in ids.items()}
    for what, work in (("direction pass", direction), ("generation", answers)):
        found = in_turns(sets, work, args.repeats)
        seconds = {name: statistics.median(times) for name, times in found.items()}
        print(
            table_row(
                what,
                *(f"{value:.2f} s" for value in seconds.values()),
                f"{seconds['mixed'] / seconds['short']:.1f}",
                f"{tokens['mixed'] / tokens['short']:.1f}",
            )
        )
