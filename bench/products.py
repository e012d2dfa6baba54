"""How much of a run's time goes into matrix products, and at what share of the machine's rate.

    python bench/products.py OUTPUT_DIR [--set train.updates=20] [--top 12]

Runs the recipe of the built-in model into OUTPUT_DIR and times every operation that
`torch.utils.flop_counter` has a formula for: matrix products and attention, forward and backward.
The machine's rate is that of one large product of the same type, measured before the run.
Watching costs some microseconds an operation, which the other operations' time includes; so shares
are too low rather than too high. Printed are, for each stage, seconds, the share in products, what
these compute, read and write, and the share of time in products at half of the machine's rate or
more; then the shapes that take most.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from safesteer.cli.silence import silence_libraries
from safesteer.config.load import load_settings
from safesteer.pipeline.preflight import open_run
from safesteer.pipeline.stages import Pipeline

_aten = torch.ops.aten
# The formulas of attention on GPUs hold on the CPU too, where none is registered.
FORMULAS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
STAGES = ("direction", "tokens", "train", "evaluate", "report")


@dataclass
class Count:
    """Time, floating-point operations and bytes of the tensors, of calls of one kind."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    calls: int = 0
    fast: float = 0.0  # seconds of calls at half of the machine's rate or more


@dataclass
class Products(TorchDispatchMode):
    """Times what computes products while it is active.

    Attributes:
        rates: operations a second of the machine, by type.
        shapes: what was seen, by operation and shapes.
    """

    rates: dict[torch.dtype, float]
    shapes: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        started = time.perf_counter()
        output = func(*args, **kwargs)
        seconds = time.perf_counter() - started
        results = output if isinstance(output, tuple) else (output,)
        tensors = [each for each in (*args, *results) if isinstance(each, torch.Tensor)]
        operations = formula(*args, **kwargs, out_val=output)
        name = str(func._overloadpacket).removeprefix("aten.")
        shown = " x ".join(str(list(each.shape)) for each in args if isinstance(each, torch.Tensor))
        count = self.shapes[f"{name} {shown} {str(tensors[0].dtype).removeprefix('torch.')}"]
        count.seconds += seconds
        count.operations += operations
        count.bytes += sum(each.numel() * each.element_size() for each in tensors)
        count.calls += 1
        if operations / seconds >= self.rates.get(tensors[0].dtype, math.inf) / 2:
            count.fast += seconds
        return output

    def total(self) -> Count:
        """The sum over all shapes."""
        counts = self.shapes.values()
        return Count(
            sum(c.seconds for c in counts),
            sum(c.operations for c in counts),
            sum(c.bytes for c in counts),
            sum(c.calls for c in counts),
            sum(c.fast for c in counts),
        )


def product_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 20) -> float:
    """Operations a second of a product of two square matrices, the best of several."""
    left, right = torch.randn(2, size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def main() -> None:
    """Run the stages, each under its own count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--top", type=int, default=12, help="shapes to print")
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    settings = load_settings("smollm2-135m", arguments.set)
    everything: dict[str, Count] = {}
    with open_run(arguments.output, settings, fresh=True) as run:
        pipeline = Pipeline(run)
        dtype = pipeline.model.model.dtype
        rates = {each: product_rate(each) for each in {dtype, torch.float32}}
        for each, rate in rates.items():
            print(f"one large product of {each}: {rate / 1e9:.0f} GFLOP/s")
        print()
        print(
            "| stage | seconds | in products | GFLOP/s in products | GB/s | at half rate or more |"
        )
        print("|---|---|---|---|---|---|")
        for stage in STAGES:
            products = Products(rates)
            started = time.perf_counter()
            with products:
                getattr(pipeline, stage)()
            seconds = time.perf_counter() - started
            total = products.total()
            within = max(total.seconds, 1e-9)
            print(
                f"| {stage} | {seconds:.0f} | {total.seconds / seconds:.0%} |"
                f" {total.operations / within / 1e9:.0f} | {total.bytes / within / 1e9:.1f} |"
                f" {total.fast / seconds:.0%} |",
                flush=True,
            )
            everything |= {f"{stage}: {name}": count for name, count in products.shapes.items()}
    print("\n| shape | seconds | calls | GFLOP/s | GB/s |\n|---|---|---|---|---|")
    most = sorted(everything.items(), key=lambda item: -item[1].seconds)[: arguments.top]
    for name, c in most:
        print(
            f"| {name} | {c.seconds:.1f} | {c.calls} | {c.operations / c.seconds / 1e9:.0f} |"
            f" {c.bytes / c.seconds / 1e9:.1f} |"
        )


if __name__ == "__main__":
    main()
