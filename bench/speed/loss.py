"""The loss on S against two others: TRL's over the vocabulary, and the plain one.

    python -m bench.speed loss [--vocabulary 49152,151936,262144] [--positions 512,4096,16384]
        [--tokens 50,200] [--width 576] [--dtype float32] [--repeats 3]

`ours` is `distillation_loss`: streamed log-sum-exp, logits of S alone, gradient in the same pass.
`trl` is the loss of TRL's DistillationTrainer: reverse KL over the vocabulary, in chunks. `plain`
makes two log-softmaxes of [positions, vocabulary] and gathers S. Each is run forward and backward
to the hidden states, with a frozen head, in a process of its own; they take turns. Prints medians
of time and of peak memory beyond the inputs, both also as ratios to ours, and the share of our
time that its three matrix products alone would take at the rate measured beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from bench.command_line import numbers
from bench.peak_memory import PeakMemory
from bench.tables import table_head, table_row
from bench.timing import in_own_process, in_turns, medians, timed
from safesteer.distill.losses import distillation_loss
from safesteer.models.lm_head import OutputHead

NAMES = ("ours", "trl", "plain")
# Two float32 log-softmaxes, the gradient of one, and what autograd keeps.
PLAIN_COPIES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--vocabulary", default="49152,151936,262144")
    parser.add_argument("--positions", default="512,4096,16384")
    parser.add_argument("--tokens", default="50,200")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16, help="GB that `plain` may take")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Print one row per shape and loss."""
    if arguments.child:
        name, *sizes = arguments.child
        measure(name, *map(int, sizes), arguments.width, arguments.dtype)
        return
    print(f"width {arguments.width}, {arguments.dtype}, {torch.get_num_threads()} threads")
    columns = ("seconds", "memory", "time / ours", "memory / ours", "products / time")
    print(table_head("vocabulary", "positions", "K", "loss", *columns))
    for vocabulary in numbers(arguments.vocabulary):
        for positions in numbers(arguments.positions):
            for count in numbers(arguments.tokens):
                compare(arguments, vocabulary, positions, count)


def compare(arguments: argparse.Namespace, vocabulary: int, positions: int, count: int) -> None:
    """Print the rows of one shape."""
    fits = PLAIN_COPIES * 4 * positions * vocabulary / 1e9 <= arguments.memory
    options = ("--width", arguments.width, "--dtype", arguments.dtype)
    found = in_turns(
        [name for name in NAMES if fits or name != "plain"],
        lambda name: in_own_process(
            *("bench.speed", "loss", *options, "--child", name, positions, vocabulary, count)
        ),
        arguments.repeats,
    )
    ours = medians(found["ours"])
    products = 6 * positions * vocabulary * arguments.width / ours["rate"]
    for name in NAMES:
        shape = (vocabulary, positions, count, name)
        if name not in found:
            print(table_row(*shape, "does not fit", "", "", "", ""), flush=True)
            continue
        one = medians(found[name])
        cells = [
            f"{one['seconds']:.2f}",
            f"{one['bytes'] / 1e6:.0f} MB",
            f"{one['seconds'] / ours['seconds']:.2f}",
            f"{one['bytes'] / max(1.0, ours['bytes']):.1f}",
            f"{products / one['seconds']:.0%}" if name == "ours" else "",
        ]
        print(table_row(*shape, *cells), flush=True)


def measure(name: str, positions: int, vocabulary: int, count: int, width: int, dtype: str) -> None:
    """Make one measurement, in this process, and print {"seconds", "bytes", "rate"}."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(kind)
    tokens = torch.randperm(vocabulary, device=device)[:count]
    teacher = torch.randn(positions, width, device=device).to(kind)
    student = torch.randn(positions, width, device=device).to(kind).requires_grad_()
    loss = make_loss(name, weight, tokens)
    loss(student[:8], teacher[:8]).backward()  # warm-up
    chunk = min(positions, 1024)

    def product() -> None:
        torch.mm(student.detach()[:chunk], weight.T)
        _wait(device)

    def step() -> None:
        loss(student, teacher).backward()
        _wait(device)

    rate = 2 * chunk * vocabulary * width / timed(product)[1]
    with PeakMemory() as peak:
        seconds = timed(step)[1]
    print(json.dumps({"seconds": seconds, "bytes": peak.bytes, "rate": rate}))


def make_loss(
    name: str, weight: torch.Tensor, tokens: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """loss(student hidden states [N, D], teacher's [N, D]) -> scalar."""
    if name == "ours":
        output = OutputHead(weight)
        return lambda s, t: distillation_loss("paper", output, s, t, tokens)[0].mean()
    if name == "trl":
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def whole(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(1, len(s), device=s.device)
            return _chunked_divergence_loss(s[None], t[None], weight, weight, mask, beta=1.0)[0]

        return whole

    def plain(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        log_s = torch.log_softmax((s @ weight.T).float(), dim=-1)[:, tokens]
        with torch.no_grad():
            log_t = torch.log_softmax((t @ weight.T).float(), dim=-1)[:, tokens]
        return (log_s.exp() * (log_s - log_t)).sum(-1).mean()

    return plain


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
