"""How the cost of each stage grows with prompts, rollout length, layers, vocabulary and K.

    python bench/scaling.py [--repeats 3]

One of the five is doubled twice, the others stay as they are, on a Llama of random weights with the
tokenizer and chat template of the built-in model. Each measurement is a process of its own: seconds
of the means of the residual stream (`direction`), of the safety tokens (`tokens`), of one epoch of
training (`train`) and of answering the same prompts (`evaluate`), and the peak of memory over all
of them. Printed: medians, and in brackets what they are of those of the smallest size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from child import in_its_own_process
from memory import PeakMemory
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from safesteer.cli.silence import silence_libraries
from safesteer.config.settings import TokenSettings, TrainSettings
from safesteer.direction.activations import prompt_means
from safesteer.direction.vector import Direction
from safesteer.distill.train import train
from safesteer.models.chat import ChatRenderer
from safesteer.models.files import builtin_path
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import ChatModel, quiet_libraries
from safesteer.prompts import load_prompt_set
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher

WIDTH = 256
SMALLEST = {"prompts": 32, "new_tokens": 16, "layers": 6, "vocabulary": 49152, "tokens": 50}
STAGES = ("direction", "tokens", "train", "evaluate")
BATCH = 16


def make_model(layers: int, vocabulary: int) -> ChatModel:
    """A model of that many layers and rows of the output matrix, on the built-in's tokenizer."""
    path = builtin_path()
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_hidden_layers=layers,
            vocab_size=vocabulary,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,  # every answer has its full length
        )
    )
    return ChatModel(model.eval().requires_grad_(False), ChatRenderer(tokenizer), id="random")


def child(size: dict[str, int]) -> None:
    """One measurement; prints {stage: seconds, "bytes": peak}."""
    silence_libraries(debug=False)
    model = make_model(size["layers"], size["vocabulary"])
    model.tokenizer.eos_token = None
    prompts = [list(p.messages) for p in load_prompt_set("harmful").train][: size["prompts"]]
    teacher = Teacher(Direction(torch.randn(WIDTH), size["layers"] // 2))
    settings = TrainSettings(
        prompts=len(prompts),
        prompts_per_update=BATCH,
        samples_per_prompt=1,
        max_completion_tokens=size["new_tokens"],
        save_every=1000,
    )
    chosen = TokenSettings(
        count=size["tokens"],
        prompt_count=len(prompts),
        samples_per_prompt=1,
        horizon=size["new_tokens"],
    )
    ids = [model.chat.ids(prompt) for prompt in prompts]
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - started
        return found

    prompt_means(model, prompts[:4], 4)  # loads what is loaded when first used
    with PeakMemory() as peak, tempfile.TemporaryDirectory() as folder:
        timed("direction", lambda: prompt_means(model, prompts, 4, batch_size=BATCH))
        tokens = timed(
            "tokens",
            lambda: select_safety_tokens(model, teacher, prompts, chosen, batch_size=BATCH).ids,
        )
        timed(
            "train",
            lambda: train(model, teacher, tokens, prompts, (), settings, folder=Path(folder)),
        )
        timed(
            "evaluate",
            lambda: generate(
                model.model,
                model.tokenizer,
                ids,
                Decoding(size["new_tokens"]),
                batch_size=BATCH,
            ),
        )
    print(json.dumps({**seconds, "bytes": peak.bytes}))


def main() -> None:
    """Print a table for each of the five."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    for what, smallest in SMALLEST.items():
        sizes = [{**SMALLEST, what: factor * smallest} for factor in (1, 2, 4)]
        found: list[list[dict[str, float]]] = [[] for _ in sizes]
        for _ in range(arguments.repeats):
            for runs, size in zip(found, sizes, strict=True):
                runs.append(in_its_own_process(__file__, "--child", json.dumps(size)))
        print(f"| {what} | " + " | ".join(STAGES) + " | memory |")
        print("|---" * (len(STAGES) + 2) + "|")
        first: dict[str, float] = {}
        for runs, size in zip(found, sizes, strict=True):
            row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            first = first or row
            cells = [f"{row[name]:.2f} s ({row[name] / first[name]:.1f})" for name in STAGES]
            cells.append(f"{row['bytes'] / 1e6:.0f} MB ({row['bytes'] / first['bytes']:.1f})")
            print(f"| {size[what]} | " + " | ".join(cells) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
