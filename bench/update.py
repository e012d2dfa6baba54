"""One training update against the same update with two models and all of the vocabulary.

    python bench/update.py [MODEL] [--rows 16] [--new-tokens 64] [--updates 3] [--repeats 3]
        [--lora-from-layer steered|0]

Both distil the same steered teacher into the same LoRA student on the same completions, without
the cost of sampling them; its adapters lie in the layers from the steered one on, or in all.
`ours` is `safesteer.distill.train`: one set of weights, hidden states of
the completion alone, the loss on S from hidden states. `two models` is the update as it is usually
written: a second copy of the model is the teacher, both give logits at every position, and two
log-softmaxes of [completion, vocabulary] make a reverse KL. Each measurement is a process of its
own, which take turns; printed are medians of the seconds of an update after the first, of the peak
of memory (the model's weights and all that comes on top of them), and their ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from child import in_its_own_process
from memory import PeakMemory

from safesteer.cli.silence import silence_libraries
from safesteer.config.settings import TrainSettings
from safesteer.direction.vector import Direction
from safesteer.distill import trainer
from safesteer.distill.lora import with_lora
from safesteer.distill.train import train
from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import positions
from safesteer.models.layers import find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import steer
from safesteer.prompts import load_prompt_set
from safesteer.teacher import Teacher

NAMES = ("ours", "two models")
TOKENS = 50


def direction_for(model: ChatModel) -> Direction:
    """Some direction in the middle of the model: what it means costs nothing."""
    width = model.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    return Direction(torch.randn(width, generator=generator), len(find_blocks(model.model)) // 2)


def ours(
    model: ChatModel, settings: TrainSettings, prompts: list, answer: list[int]
) -> list[float]:
    """Seconds of each update of `train`, its rollouts given."""
    trainer.generate = lambda student, tokenizer, ids, **kwargs: [answer] * len(ids)  # type: ignore[assignment]
    seconds: list[float] = []

    def note(line: dict[str, Any], _total: int) -> None:
        seconds.append(sum(line["seconds"].values()))

    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            Teacher(direction_for(model)),
            list(range(TOKENS)),
            prompts,
            settings=settings,
            folder=Path(folder),
            on_update=note,
        )
    return seconds


def two_models(
    model: ChatModel, settings: TrainSettings, prompts: list, answer: list[int]
) -> list[float]:
    """Seconds of each update of a plain loop."""
    direction = direction_for(model)
    teacher = copy.deepcopy(model.model)
    student = with_lora(model.model, settings, 0, direction.layer).train()
    optimiser = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], settings.learning_rate
    )
    rows = settings.prompts_per_update
    seconds = []
    for start in range(0, rows * (settings.updates or 1), rows):
        begun = time.perf_counter()
        ids, mask = pad_left(
            [model.chat.ids(prompt) + answer for prompt in prompts[start : start + rows]],
            model.tokenizer.pad_token_id,
            model.model.device,
        )
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        where = slice(-len(answer) - 1, -1)
        with torch.no_grad(), steer(teacher, direction.layer, direction.vector, 1.0):
            log_t = torch.log_softmax(teacher(**given).logits[:, where].float(), dim=-1)
        log_s = torch.log_softmax(student(**given).logits[:, where].float(), dim=-1)
        (log_s.exp() * (log_s - log_t)).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds


def child(name: str, arguments: argparse.Namespace) -> None:
    """One measurement; prints {"seconds", "bytes"}."""
    silence_libraries(debug=False)
    model = load_model(arguments.model)
    settings = TrainSettings(
        prompts_per_update=arguments.rows,
        samples_per_prompt=1,
        updates=arguments.updates,
        prompts=arguments.rows * arguments.updates,
        max_completion_tokens=arguments.new_tokens,
        save_every=1000,
        lora={"first_layer": arguments.lora_from_layer},
    )
    found = [list(p.messages) for p in load_prompt_set("harmful").train]
    prompts = (found * (settings.prompts // len(found) + 1))[: settings.prompts]
    answer = torch.randint(1000, 2000, (arguments.new_tokens,)).tolist()
    work = ours if name == "ours" else two_models
    with PeakMemory() as peak:
        seconds = work(model, settings, prompts, answer)
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "bytes": weights + peak.bytes}))


def main() -> None:
    """Print a table of two rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--lora-from-layer", choices=["steered", "0"], default="steered")
    parser.add_argument("--updates", type=int, default=3, help="at least 2: the first warms up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for _ in range(arguments.repeats):
        for name in NAMES:
            found[name].append(in_its_own_process(__file__, *sys.argv[1:], "--child", name))
    rows = {
        name: [statistics.median(run[key] for run in runs) for key in ("seconds", "bytes")]
        for name, runs in found.items()
    }
    print(f"{arguments.model}: {arguments.rows} completions of {arguments.new_tokens} tokens")
    print("| update | seconds | memory | time / two models | memory / two models |")
    print("|---|---|---|---|---|")
    for name, (seconds, memory) in rows.items():
        ratios = seconds / rows["two models"][0], memory / rows["two models"][1]
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {seconds:.2f} | {memory / 1e9:.2f} GB | {shown} |")


if __name__ == "__main__":
    main()
