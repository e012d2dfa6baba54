"""What `torch.compile` gains where answers are written: one token for many rows at once.

    python bench/compiled.py [MODEL] [--rows 60] [--tokens 16] [--repeats 3]

The blocks of the model as they are, with the cache that `generate` uses, against the same compiled
for a static cache, in turns. Printed are medians of a token's seconds, and what compiling took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import StaticCache

from safesteer.cli.silence import silence_libraries
from safesteer.config import ModelSettings
from safesteer.models.layers import backbone
from safesteer.models.load import load_model

PROMPT = 24  # tokens


@torch.no_grad()
def token_seconds(run: Any, blocks: Any, cache: Any, rows: int, tokens: int) -> float:
    """Median seconds of a token after a prompt of PROMPT tokens, which is not timed."""
    prompt = torch.full((rows, PROMPT), 5)
    place = torch.arange(PROMPT)
    cache = blocks(
        input_ids=prompt, past_key_values=cache, use_cache=True, cache_position=place
    ).past_key_values
    seconds = []
    for step in range(tokens):
        begun = time.perf_counter()
        run(
            input_ids=prompt[:, :1],
            past_key_values=cache,
            use_cache=True,
            cache_position=torch.tensor([PROMPT + step]),
        )
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    """Print two medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    blocks = backbone(load_model(ModelSettings(id=arguments.model)).model)
    compiled = torch.compile(blocks, dynamic=False)
    found: dict[str, list[float]] = {"as it is": [], "compiled": []}
    took = 0.0
    for repeat in range(arguments.repeats + 1):
        begun = time.perf_counter()
        length = PROMPT + arguments.tokens
        for name, run in (("as it is", blocks), ("compiled", compiled)):
            cache = None
            if name == "compiled":
                cache = StaticCache(config=blocks.config, max_cache_len=length)
            median = token_seconds(run, blocks, cache, arguments.rows, arguments.tokens)
            if repeat:  # the first round compiles
                found[name].append(median)
        took = took or time.perf_counter() - begun
    plain, fused = (statistics.median(medians) for medians in found.values())
    print(f"{plain * 1e3:.0f} ms a token as it is, {fused * 1e3:.0f} ms compiled:", end=" ")
    print(f"{fused / plain:.2f}; compiling took {took:.0f} s at most")


if __name__ == "__main__":
    main()
