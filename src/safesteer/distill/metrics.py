"""The file metrics.jsonl: one line for every step of a training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from safesteer.distill.checkpoints import METRICS, mark_complete
from safesteer.errors import SafeSteerError

if TYPE_CHECKING:
    from safesteer.distill.trainer import SafeSteerTrainer

_OF_SOME = ("repaired_refusal_rate", "unfinished")  # only where there are such rollouts

OnStep = Callable[[dict[str, Any], int], None]  # (line of the step, steps in all)


class MetricsFile(TrainerCallback):
    """Append a line to metrics.jsonl after every step, and mark complete checkpoints."""

    def __init__(
        self, trainer: SafeSteerTrainer, folder: Path, on_step: OnStep | None = None
    ) -> None:
        self.trainer = trainer
        self.folder = folder
        self.on_step = on_step
        self._step_start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._step_start = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if not logs or "loss" not in logs:
            return
        # transformers leaves losses that are not finite out of the logs, so the norm has to tell.
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise SafeSteerError(
                f"non-finite gradients at step {state.global_step}; training stopped before they"
                " reached the weights. Try: a lower train.learning_rate"
            )
        if not state.is_world_process_zero:
            return
        completions = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        line = self._line(state.global_step, logs, completions)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.on_step is not None:
            self.on_step(line, state.max_steps)

    def _line(self, step: int, logs: dict[str, Any], completions: int) -> dict[str, Any]:
        measured = dict(self.trainer.seconds)
        self.trainer.seconds.clear()
        total = time.perf_counter() - self._step_start  # the rollout is a part of the step
        passes = measured.get("step", 0.0)
        seconds = {name: measured.get(name, 0.0) for name in ("rollout", "teacher")}
        seconds["student"] = max(0.0, passes - seconds["teacher"] - seconds["rollout"])
        seconds["optimizer"] = max(0.0, time.perf_counter() - self._step_start - passes)
        tokens = logs.get("completion_length", 0.0) * completions
        names = (
            "mass_student",
            "mass_teacher",
            "entropy",
            "completion_length",
            "refusal_rate",
            "anchor_refusal_rate",
        )
        return {
            "step": step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs.get("learning_rate"),
            **{name: logs.get(name) for name in names},
            **{name: logs[name] for name in _OF_SOME if name in logs},
            "tokens_per_second": tokens / total if total > 0 else None,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random states
        if state.is_world_process_zero:
            mark_complete(self.folder, state.global_step)
