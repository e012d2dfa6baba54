"""Where a run's time goes, and the least it could cost.

    python -m bench.speed profile OUTPUT_DIR [MODEL] [--set train.max_steps=20] [--top 12]

Runs a model's recipe into OUTPUT_DIR and times its parts, and within them every operation that
`torch.utils.flop_counter` has a formula for: matrix products and attention, forward and backward.
The machine's rate is that of one large product of the model's dtype, measured before the run; the
least time of a part is that of its operations at this rate. Watching costs some microseconds per
operation, which count as other work. Prints for each part its seconds, the share in products, their
rate, and the least seconds; then the shapes that take most time. A flame chart of the same run:

    py-spy record --rate 20 --output profile.svg -- python -m safesteer run MODEL -o OUTPUT_DIR
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.tables import table_head, table_row
from bench.timing import timed
from safesteer.config.load import load_settings, recipe_for_model
from safesteer.distill import train as training
from safesteer.distill.teacher_pass import ForwardPasses
from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.pipeline import stages
from safesteer.pipeline.preflight import open_run
from safesteer.pipeline.stages import Pipeline
from safesteer.runs import artifacts
from safesteer.runs.stage import STAGES

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


def parts() -> list[tuple[Any, str, str]]:
    """Owner and name of the functions whose time is a part of its own, and the part's name."""
    return [
        (artifacts, "load_model", "loading"),
        (training, "measure_kfac", "K-FAC"),
        (SafeSteerTrainer, "_generate_single_turn", "rollouts"),
        (SafeSteerTrainer, "_generate_and_score_completions", "other of a generation"),
        (ForwardPasses, "teach", "teacher"),
        (ForwardPasses, "teach_from", "teacher"),
        (SafeSteerTrainer, "_compute_loss", "student, forward"),
        (SafeSteerTrainer, "_position_losses", "loss"),
        (Accelerator, "backward", "student, backward"),
        (AcceleratedOptimizer, "step", "optimizer"),
        (SafeSteerTrainer, "_save_checkpoint", "saving"),
        (stages, "save_student", "saving"),
    ]


@dataclass
class Count:
    """Seconds, floating-point operations and calls of one kind, or of one part of the work."""

    seconds: float = 0.0  # in products
    operations: float = 0.0
    calls: int = 0
    wall: float = 0.0  # seconds of a part, those of the parts within it excluded


@dataclass
class Profile(TorchDispatchMode):
    """Times the parts of a run, and the matrix products and attention in them.

    Attributes:
        parts: {name: its products and seconds}.
        shapes: {operation, shapes and dtype: its calls}.
    """

    parts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    shapes: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    _within: list[str] = field(default_factory=list)
    _since: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        output, seconds = timed(lambda: func(*args, **kwargs))
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        name = str(func._overloadpacket).removeprefix("aten.")
        shown = " x ".join(str(list(each.shape)) for each in tensors)
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        for count in (self.shapes[f"{name} {shown} {dtype}"], self.parts[self._within[-1]]):
            count.seconds += seconds
            count.operations += formula(*args, **kwargs, out_val=output)
            count.calls += 1
        return output

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time and the products of the block under `name`."""
        self._switch()
        self._within.append(name)
        try:
            yield
        finally:
            self._switch()
            self._within.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._within:
            self.parts[self._within[-1]].wall += now - self._since
        self._since = now

    def watched(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`work` as a part of its own within the stage that calls it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            stage = self._within[0].partition(":")[0]
            with self.part(f"{stage}: {name}"):
                return work(*args, **kwargs)

        return run


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
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--top", type=int, default=12, help="shapes to print")


def run(arguments: argparse.Namespace) -> None:
    """Run the stages and print two tables."""
    recipe = recipe_for_model(arguments.model)
    settings = load_settings(recipe, arguments.set, model={"id": arguments.model})
    profile = Profile()
    with open_run(arguments.output, settings, fresh=True) as opened, ExitStack() as watching:
        for owner, name, part in parts():
            watched = profile.watched(getattr(owner, name), part)
            watching.enter_context(patch.object(owner, name, watched))
        pipeline = Pipeline(opened)
        for stage in filter(pipeline.is_used, STAGES):
            with profile.part(f"{stage}: rest"), profile:
                getattr(pipeline, stage)()
        rate = product_rate(pipeline.model.model.dtype)
    print(f"one large product of {pipeline.model.model.dtype}: {rate / 1e9:.0f} GFLOP/s\n")
    total = sum(part.wall for part in profile.parts.values())
    columns = ("seconds", "of the run", "in products", "GFLOP/s in them", "least seconds")
    print(table_head("stage and part", *columns))
    for stage in STAGES:
        for name, part in profile.parts.items():
            if name.startswith(stage) and part.wall / total >= 0.002:
                print(table_row(name, *cells(part, total, rate)))
    print(table_row("all", *cells(sum_of(profile.parts.values()), total, rate)))
    print("\n" + table_head("shape", "seconds", "calls", "GFLOP/s"))
    most = sorted(profile.shapes.items(), key=lambda item: -item[1].seconds)[: arguments.top]
    for name, found in most:
        speed = f"{found.operations / found.seconds / 1e9:.0f}"
        print(table_row(name, f"{found.seconds:.1f}", found.calls, speed))


def cells(part: Count, total: float, rate: float) -> list[str]:
    """The cells of a part's row."""
    within = max(part.seconds, 1e-9)
    return [
        f"{part.wall:.1f}",
        f"{part.wall / total:.0%}",
        f"{part.seconds / max(part.wall, 1e-9):.0%}",
        f"{part.operations / within / 1e9:.0f}",
        f"{part.operations / rate:.1f}",
    ]


def sum_of(counts: Iterable[Count]) -> Count:
    """The sum of several counts."""
    names = ("seconds", "operations", "calls", "wall")
    columns = [[getattr(count, name) for name in names] for count in counts]
    return Count(*map(sum, zip(*columns, strict=True)))
