"""One optimizer step against the same step with two models and the whole vocabulary.

    python -m bench.speed update [MODEL] [--rows 16] [--new-tokens 64] [--steps 3] [--repeats 3]
        [--lora-from-layer steered|0]

Both distill the same steered teacher into the same LoRA student on the same given completions,
with adapters from the steered layer on or in all layers. `ours` is `safesteer.distill.train`: one
set of weights, hidden states of the completion alone, the loss on S from hidden states. `two
models` is the usual implementation: a second copy of the model is the teacher, both give logits at
every position, and two log-softmaxes of [completion, vocabulary] make a reverse KL. Each
measurement is a process of its own; they take turns. Prints medians of the seconds of a step after
the first, of the peak memory with the model's weights, and their ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from typing import Any

import torch

from bench.inputs import harmful_prompts, plain_training, random_direction
from bench.peak_memory import PeakMemory
from bench.tables import table_head, table_row
from bench.timing import in_own_process, in_turns, medians, timed
from safesteer.config.settings import TrainSettings
from safesteer.distill import trainer
from safesteer.distill.lora import with_lora
from safesteer.distill.plan import TrainingPrompts
from safesteer.distill.train import TrainingOutput, train
from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import positions
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import steer
from safesteer.teacher import Teacher

NAMES = ("ours", "two models")
TOKENS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--lora-from-layer", choices=["steered", "0"], default="steered")
    parser.add_argument("--steps", type=int, default=3, help="at least 2: the first warms up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Print a table of two rows."""
    if arguments.child:
        measure(arguments.child, arguments)
        return
    found = in_turns(
        NAMES,
        lambda name: in_own_process("bench.speed", *sys.argv[1:], "--child", name),
        arguments.repeats,
    )
    print(f"{arguments.model}: {arguments.rows} completions of {arguments.new_tokens} tokens")
    print(table_head("step", "seconds", "memory", "time / two models", "memory / two models"))
    plain = medians(found["two models"])
    for name in NAMES:
        one = medians(found[name])
        ratios = [f"{one[key] / plain[key]:.2f}" for key in ("seconds", "bytes")]
        print(table_row(name, f"{one['seconds']:.2f}", f"{one['bytes'] / 1e9:.2f} GB", *ratios))


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Make one measurement, in this process, and print {"seconds", "bytes"}."""
    model = load_model(arguments.model)
    settings = plain_training(
        prompts_per_step=arguments.rows,
        max_steps=arguments.steps,
        num_prompts=arguments.rows * arguments.steps,
        max_completion_length=arguments.new_tokens,
        lora={"first_layer": arguments.lora_from_layer},
    )
    found = harmful_prompts()
    needed = arguments.rows * arguments.steps
    prompts = (found * (needed // len(found) + 1))[:needed]
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    answer = (torch.randint(1000, 2000, (arguments.new_tokens,)) % vocabulary).tolist()
    work = ours if name == "ours" else two_models
    with PeakMemory() as peak:
        seconds = work(model, settings, prompts, answer)
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "bytes": weights + peak.bytes}))


def ours(
    model: ChatModel, settings: TrainSettings, prompts: list, answer: list[int]
) -> list[float]:
    """Seconds of each step of `train`, with given rollouts."""
    trainer.generate = lambda student, tokenizer, ids, *_, **__: [answer] * len(ids)  # type: ignore[assignment]
    seconds: list[float] = []

    def note(line: dict[str, Any], _total: int) -> None:
        seconds.append(sum(line["seconds"].values()))

    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            Teacher(random_direction(model)),
            list(range(TOKENS)),
            TrainingPrompts(prompts),
            settings,
            output=TrainingOutput(folder, on_step=note),
        )
    return seconds


def two_models(
    model: ChatModel, settings: TrainSettings, prompts: list, answer: list[int]
) -> list[float]:
    """Seconds of each step of a plain loop."""
    direction = random_direction(model)
    teacher = copy.deepcopy(model.model)
    student = with_lora(model.model, settings, 0, direction.layer).train()
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], settings.learning_rate
    )
    where = slice(-len(answer) - 1, -1)

    def step(rows: list) -> None:
        ids, mask = pad_left(
            [model.chat.ids(prompt) + answer for prompt in rows],
            model.tokenizer.pad_token_id,
            model.model.device,
        )
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        with torch.no_grad(), steer(teacher, direction.layer, direction.vector, 1.0):
            log_t = torch.log_softmax(teacher(**given).logits[:, where].float(), dim=-1)
        log_s = torch.log_softmax(student(**given).logits[:, where].float(), dim=-1)
        (log_s.exp() * (log_s - log_t)).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    count = settings.prompts_per_step
    starts = range(0, len(prompts), count)
    return [timed(lambda rows=prompts[at : at + count]: step(rows))[1] for at in starts]
