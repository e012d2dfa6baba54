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
from safesteer.config.settings import ModelSettings
from safesteer.models.layers import backbone
from safesteer.models.load import load_model

PROMPT = 24  # tokens


@torch.no_grad()
def token_seconds(run: Any, blocks: Any, cache: Any, rows: int, tokens: int) -> list[float]:
    """Seconds of each token after a prompt of PROMPT tokens, which is not timed."""
    prompt = torch.full((rows, PROMPT), 5)
    cache = blocks(input_ids=prompt, past_key_values=cache, use_cache=True).past_key_values
    seconds = []
    for _ in range(tokens):
        begun = time.perf_counter()
        run(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True)
        seconds.append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Print two medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    blocks = backbone(load_model(ModelSettings(id=arguments.model, device="cpu")).model)
    compiled = torch.compile(blocks, dynamic=False)
    static = StaticCache(config=blocks.config, max_cache_len=PROMPT + arguments.tokens)
    plain: list[float] = []
    fused: list[float] = []
    size = (arguments.rows, arguments.tokens)
    took = token_seconds(compiled, blocks, static, *size)[0]
    for _ in range(arguments.repeats):
        plain.append(statistics.median(token_seconds(blocks, blocks, None, *size)))
        static.reset()
        fused.append(statistics.median(token_seconds(compiled, blocks, static, *size)))
    before, after = statistics.median(plain), statistics.median(fused)
    print(f"{before * 1e3:.0f} ms a token as it is, {after * 1e3:.0f} ms compiled:", end=" ")
    print(f"{after / before:.2f}; the first compiled token took {took:.0f} s")


if __name__ == "__main__":
    main()
