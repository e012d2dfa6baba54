"""Growth of the cost of each stage with prompts, rollout length, layers, vocabulary and K.

    python -m bench.speed scaling [--repeats 3]

One of the five is doubled twice while the others stay, on a Llama of random weights with the
tokenizer and chat template of the built-in model. Each measurement is a process of its own: the
seconds of the mean activations (`direction`), of the safety tokens (`tokens`), of one epoch of
training (`train`) and of answering the same prompts (`evaluate`), and the peak memory of all of
them. Prints medians and, in brackets, their ratio to those of the smallest size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import torch

from bench.inputs import (
    builtin_tokenizer,
    harmful_prompts,
    plain_training,
    random_direction,
    random_llama,
)
from bench.peak_memory import PeakMemory
from bench.tables import table_head, table_row
from bench.timing import in_own_process, in_turns, medians, timed
from safesteer.config.settings import TokenSettings
from safesteer.direction.activations import prompt_means
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import train
from safesteer.models.chat import ChatRenderer
from safesteer.models.generate import Decoding, generate
from safesteer.models.load import ChatModel
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher

WIDTH = 256
SMALLEST = {"prompts": 32, "new_tokens": 16, "layers": 6, "vocabulary": 49152, "tokens": 50}
STAGES = ("direction", "tokens", "train", "evaluate")
BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Print a table for each of the five."""
    if arguments.child:
        measure(json.loads(arguments.child))
        return
    for what, smallest in SMALLEST.items():
        found = in_turns(
            [factor * smallest for factor in (1, 2, 4)],
            lambda size, what=what: in_own_process(
                *("bench.speed", "scaling", "--child", json.dumps({**SMALLEST, what: size}))
            ),
            arguments.repeats,
        )
        print(table_head(what, *STAGES, "memory"))
        first = medians(found[smallest])
        for size, runs in found.items():
            one = medians(runs)
            cells = [f"{one[name]:.2f} s ({one[name] / first[name]:.1f})" for name in STAGES]
            cells.append(f"{one['bytes'] / 1e6:.0f} MB ({one['bytes'] / first['bytes']:.1f})")
            print(table_row(size, *cells), flush=True)
        print()


def make_model(layers: int, vocabulary: int) -> ChatModel:
    """A random Llama of so many layers and tokens, with the built-in model's tokenizer."""
    torch.manual_seed(0)
    # Without end of turn every answer has its full length.
    model = random_llama(
        (WIDTH, 3 * WIDTH, layers, 4, 4), vocabulary, bos_token_id=None, eos_token_id=None
    )
    chat = ChatRenderer(builtin_tokenizer())
    return ChatModel(model.eval().requires_grad_(False), chat, id="random")


def measure(size: dict[str, int]) -> None:
    """Make one measurement, in this process, and print {stage: seconds, "bytes": peak}."""
    model = make_model(size["layers"], size["vocabulary"])
    model.tokenizer.eos_token = None
    prompts = harmful_prompts()[: size["prompts"]]
    teacher = Teacher(random_direction(model))
    new = size["new_tokens"]
    settings = plain_training(
        num_prompts=len(prompts), prompts_per_step=BATCH, max_completion_length=new
    )
    chosen = TokenSettings(
        num_tokens=size["tokens"],
        num_generations=1,
        horizon=new,
        advanced={"num_prompts": len(prompts)},
    )
    ids = [model.chat.ids(prompt) for prompt in prompts]
    prompt_means(model, prompts[:4], 4)  # warm-up

    def answer() -> Any:
        return generate(model.model, model.tokenizer, ids, Decoding(new), batch_size=BATCH)

    with PeakMemory() as peak, tempfile.TemporaryDirectory() as folder:
        _, direction = timed(lambda: prompt_means(model, prompts, 4, batch_size=BATCH))
        tokens, choice = timed(
            lambda: select_safety_tokens(model, teacher, prompts, chosen, batch_size=BATCH).ids
        )
        _, training = timed(
            lambda: train(model, teacher, tokens, TrainingPrompts(prompts), settings, output=folder)
        )
        _, answering = timed(answer)
    seconds = dict(zip(STAGES, (direction, choice, training, answering), strict=True))
    print(json.dumps({**seconds, "bytes": peak.bytes}))
