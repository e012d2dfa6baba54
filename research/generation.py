"""Cost of an evaluation beyond bare generation: 1.0 would be none.

    python -m research.generation [MODEL] [--prompts 200] [--new-tokens 48] [--repeats 3]

Our evaluation of harmful and harmless prompts (rendering, batches, keeping answers, offline judge,
intervals) against a bare `model.generate` over the same batches, in turns. Prints medians, their
ratio, for which the target is 1.3 at most, and how many answers are the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from bench.command_line import run_script
from bench.timing import in_turns, timed
from safesteer.config.load import load_settings
from safesteer.evaluate.benchmarks import Item, Loaded, find_benchmark
from safesteer.evaluate.suite import Suite
from safesteer.inference.variant import ModelVariant
from safesteer.judges import make_judge
from safesteer.models.batch_size import rows_that_fit
from safesteer.models.chat import pad_left
from safesteer.models.generate import end_of_turn_ids
from safesteer.models.load import ChatModel, load_model
from safesteer.prompts import Prompt, load_prompts


@torch.no_grad()
def bare(model: ChatModel, prompts: list[Prompt], new_tokens: int) -> list[str]:
    """Answers by `model.generate`, longest prompts first, in the batches of an evaluation."""
    ids = [model.chat.ids(prompt.messages) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    ends = end_of_turn_ids(model.model, model.tokenizer)
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=model.tokenizer.pad_token_id,
        repetition_penalty=1.0,  # also where the model's own settings differ
    )
    answers = [""] * len(ids)
    start = 0
    while start < len(order):
        count = rows_that_fit(model.model, len(ids[order[start]]) + new_tokens)
        rows = order[start : start + count]
        batch, mask = pad_left(
            [ids[row] for row in rows], model.tokenizer.pad_token_id, model.model.device
        )
        found: Any = model.model.generate(
            input_ids=batch, attention_mask=mask, generation_config=config
        )
        for row, tokens in zip(rows, found[:, batch.shape[1] :].tolist(), strict=True):
            stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            answers[row] = model.chat.decode(tokens[:stop])
        start += count
    return answers


def ours(model: ChatModel, prompts: list[Prompt], new_tokens: int) -> list[str]:
    """Answers as an evaluation generates, keeps and judges them."""
    settings = load_settings(evaluate={"max_new_tokens": new_tokens})
    items = [Item(prompt, prompt.text) for prompt in prompts]
    loaded = Loaded(find_benchmark("harmless"), items, {"from": "builtin"})
    judge = make_judge("offline-refusal", settings.evaluate)
    suite = Suite(settings, [loaded], [judge])
    with tempfile.TemporaryDirectory() as folder:
        variant = ModelVariant("model", model, model.model)
        result = suite.measure([variant], Path(folder))["model"]["harmless"]
        result.to_json()
        return [row["completion"] for row in result.rows()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)


def run(arguments: argparse.Namespace) -> None:
    """Print both medians and their ratio."""
    model = load_model(arguments.model)
    own = load_prompts("builtin:harmful") + load_prompts("builtin:harmless")
    prompts = own[:: max(1, len(own) // arguments.prompts)][: arguments.prompts]
    bare(model, prompts[:4], 4)  # warm-up
    works = {"bare": bare, "ours": ours}
    found = in_turns(
        works,
        lambda name: timed(lambda: works[name](model, prompts, arguments.new_tokens)),
        arguments.repeats,
    )
    for one, other in zip(*found.values(), strict=True):
        same = sum(a == b for a, b in zip(one[0], other[0], strict=True))
        print(
            f"bare {one[1]:.2f} s, ours {other[1]:.2f} s, {same} answers of {len(prompts)} the same"
        )
    medians = {
        name: statistics.median(seconds for _, seconds in runs) for name, runs in found.items()
    }
    print(
        f"{arguments.model}, {len(prompts)} prompts, {arguments.new_tokens} new tokens:"
        f" bare {medians['bare']:.2f} s, ours {medians['ours']:.2f} s,"
        f" ratio {medians['ours'] / medians['bare']:.2f}"
    )


if __name__ == "__main__":
    run_script("research.generation")
