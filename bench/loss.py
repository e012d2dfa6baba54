"""The loss on S against two others: TRL's over the vocabulary, and the plain one.

    python bench/loss.py [--vocabulary 49152,151936,262144] [--positions 512,4096,16384]
        [--tokens 50,200] [--width 576] [--dtype float32] [--repeats 3]

`ours` is `distillation_loss` (log-sum-exp streamed, logits of S from their rows, gradient in the
same pass); `trl` the loss of TRL's DistillationTrainer (chunked, reverse KL over the vocabulary);
`plain` two log-softmaxes of [positions, vocabulary] and a gather. Forward and backward to the
hidden states, frozen head. Each measurement is a process of its own, which take turns; printed are
medians of time, the peak of memory beyond the inputs, both as ratios to ours, and the share of ours
that its three matrix products would take alone at the rate measured beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from child import in_its_own_process
from memory import PeakMemory

from safesteer.distill.losses import distillation_loss
from safesteer.models.lm_head import OutputHead

NAMES = ("ours", "trl", "plain")
# Two float32 log-softmaxes, the gradient of one, and what autograd keeps.
PLAIN_COPIES = 5


def make_loss(
    name: str, weight: torch.Tensor, tokens: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """loss(student hidden states [N, D], teacher's [N, D]) -> scalar."""
    if name == "ours":
        head = OutputHead(weight)
        return lambda s, t: distillation_loss("paper", head, s, t, tokens)[0].mean()
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


def child(name: str, positions: int, vocabulary: int, count: int, width: int, dtype: str) -> None:
    """One measurement; prints {"seconds", "bytes", "rate"}."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(kind)
    tokens = torch.randperm(vocabulary, device=device)[:count]
    teacher = torch.randn(positions, width, device=device).to(kind)
    student = torch.randn(positions, width, device=device).to(kind).requires_grad_()
    loss = make_loss(name, weight, tokens)
    loss(student[:8], teacher[:8]).backward()  # loads what is loaded when first used
    chunk = min(positions, 1024)
    started = time.perf_counter()
    torch.mm(student.detach()[:chunk], weight.T)
    _wait(device)
    rate = 2 * chunk * vocabulary * width / (time.perf_counter() - started)
    with PeakMemory() as peak:
        started = time.perf_counter()
        loss(student, teacher).backward()
        _wait(device)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "bytes": peak.bytes, "rate": rate}))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print one row per shape and loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", default="49152,151936,262144")
    parser.add_argument("--positions", default="512,4096,16384")
    parser.add_argument("--tokens", default="50,200")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16, help="GB that `plain` may take")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, *numbers = arguments.child
        child(name, *map(int, numbers), arguments.width, arguments.dtype)
        return
    print(f"width {arguments.width}, {arguments.dtype}, {torch.get_num_threads()} threads")
    print("| V | positions | K | loss | seconds | memory | time / ours | memory / ours | floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for vocabulary in _numbers(arguments.vocabulary):
        for positions in _numbers(arguments.positions):
            for count in _numbers(arguments.tokens):
                _compare(arguments, vocabulary, positions, count)


def _compare(arguments: argparse.Namespace, vocabulary: int, positions: int, count: int) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for _ in range(arguments.repeats):
        for name in NAMES:
            needed = PLAIN_COPIES * 4 * positions * vocabulary / 1e9
            if name == "plain" and needed > arguments.memory:
                continue
            found[name].append(
                in_its_own_process(
                    *(__file__, "--width", arguments.width, "--dtype", arguments.dtype),
                    *("--child", name, positions, vocabulary, count),
                )
            )
    ours = {key: statistics.median(run[key] for run in found["ours"]) for key in found["ours"][0]}
    products = 6 * positions * vocabulary * arguments.width / ours["rate"]
    for name in NAMES:
        row = f"| {vocabulary} | {positions} | {count} | {name} |"
        if not found[name]:
            print(f"{row} does not fit | | | | |", flush=True)
            continue
        seconds = statistics.median(run["seconds"] for run in found[name])
        peak = statistics.median(run["bytes"] for run in found[name])
        floor = f"{products / seconds:.0%}" if name == "ours" else ""
        print(
            f"{row} {seconds:.2f} | {peak / 1e6:.0f} MB | {seconds / ours['seconds']:.2f} |"
            f" {peak / max(1.0, ours['bytes']):.1f} | {floor} |",
            flush=True,
        )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
