"""Share of a run's time in matrix products, and their speed against the machine's.

    python -m bench.speed products OUTPUT_DIR [--set train.max_steps=20] [--top 12]

Runs the recipe of the built-in model into OUTPUT_DIR and times every operation that
`torch.utils.flop_counter` has a formula for: matrix products and attention, forward and backward.
The machine's rate is that of one large product of the same dtype, measured before the run. Watching
costs some microseconds per operation, which count as other operations: so shares are too low rather
than too high. Prints for each stage its seconds, the share in products, what these compute, read
and write, and the share of time in products at half of the machine's rate or more; then the shapes
that take most time.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.tables import table_head, table_row
from bench.timing import timed
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
    """Seconds, floating-point operations and bytes of tensors of calls of one kind."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    calls: int = 0
    fast: float = 0.0  # seconds of calls at half of the machine's rate or more

    def amounts(self) -> list[tuple[float, str]]:
        """Operations and bytes, each with the format of its rate."""
        return [(self.operations, ".0f"), (self.bytes, ".1f")]


@dataclass
class Products(TorchDispatchMode):
    """Times matrix products and attention while it is active.

    Attributes:
        rates: {dtype: operations per second of one large product}.
        shapes: {operation, shapes and dtype: its calls}.
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
        output, seconds = timed(lambda: func(*args, **kwargs))
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
        total = Count()
        for each in self.shapes.values():
            for name, value in vars(each).items():
                setattr(total, name, getattr(total, name) + value)
        return total


def product_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 20) -> float:
    """Operations per second of a product of two square matrices, the best of several."""
    left, right = torch.randn(2, size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        best = min(best, timed(lambda: left @ right)[1])
    return 2 * size**3 / best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--top", type=int, default=12, help="shapes to print")


def run(arguments: argparse.Namespace) -> None:
    """Run the stages, each under its own count."""
    settings = load_settings("smollm2-135m", arguments.set)
    everything: dict[str, Count] = {}
    with open_run(arguments.output, settings, fresh=True) as opened:
        pipeline = Pipeline(opened)
        dtype = pipeline.model.model.dtype
        rates = {each: product_rate(each) for each in {dtype, torch.float32}}
        for each, rate in rates.items():
            print(f"one large product of {each}: {rate / 1e9:.0f} GFLOP/s")
        columns = ("in products", "GFLOP/s in products", "GB/s", "at half rate or more")
        print("\n" + table_head("stage", "seconds", *columns))
        for stage in STAGES:
            products = Products(rates)
            with products:
                _, seconds = timed(getattr(pipeline, stage))
            print(table_row(stage, *shares(products.total(), seconds)), flush=True)
            everything |= {f"{stage}: {name}": found for name, found in products.shapes.items()}
    print("\n" + table_head("shape", "seconds", "calls", "GFLOP/s", "GB/s"))
    most = sorted(everything.items(), key=lambda item: -item[1].seconds)[: arguments.top]
    for name, found in most:
        rates_of = [f"{each / found.seconds / 1e9:{form}}" for each, form in found.amounts()]
        print(table_row(name, f"{found.seconds:.1f}", found.calls, *rates_of))


def shares(total: Count, seconds: float) -> list[str]:
    """Cells of a stage that took so many seconds."""
    within = max(total.seconds, 1e-9)
    return [
        f"{seconds:.0f}",
        f"{total.seconds / seconds:.0%}",
        *(f"{each / within / 1e9:{form}}" for each, form in total.amounts()),
        f"{total.fast / seconds:.0%}",
    ]
