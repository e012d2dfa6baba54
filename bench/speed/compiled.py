"""Gain of `torch.compile` when answers are generated: one token for many rows at once.

    python -m bench.speed compiled [MODEL] [--rows 60] [--tokens 16] [--repeats 3]

The model's blocks with the cache that `generate` uses, against the same blocks compiled for a
static cache, in turns. Prints the median seconds of a token for both, and the compile time.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from transformers import StaticCache

from bench.timing import in_turns, timed
from safesteer.config.settings import ModelSettings
from safesteer.models.layers import backbone
from safesteer.models.load import load_model

PROMPT = 24  # tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)


@torch.no_grad()
def token_seconds(run: Any, blocks: Any, cache: Any, rows: int, tokens: int) -> list[float]:
    """Seconds of each token after a prompt of PROMPT tokens, which is not timed."""
    prompt = torch.full((rows, PROMPT), 5)
    cache = blocks(input_ids=prompt, past_key_values=cache, use_cache=True).past_key_values

    def step() -> None:
        run(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True)

    return [timed(step)[1] for _ in range(tokens)]


def run(arguments: argparse.Namespace) -> None:
    """Print two medians and their ratio."""
    blocks = backbone(load_model(ModelSettings(id=arguments.model, device="cpu")).model)
    compiled = torch.compile(blocks, dynamic=False)
    static = StaticCache(config=blocks.config, max_cache_len=PROMPT + arguments.tokens)
    size = (arguments.rows, arguments.tokens)
    first = token_seconds(compiled, blocks, static, *size)[0]

    def measure(name: str) -> float:
        if name == "plain":
            return statistics.median(token_seconds(blocks, blocks, None, *size))
        static.reset()
        return statistics.median(token_seconds(compiled, blocks, static, *size))

    found = in_turns(("plain", "compiled"), measure, arguments.repeats)
    before, after = (statistics.median(values) for values in found.values())
    print(
        f"{before * 1e3:.0f} ms per token as it is, {after * 1e3:.0f} ms compiled:"
        f" {after / before:.2f}; the first compiled token took {first:.0f} s"
    )
