"""Checkpoints of a training: which of them are complete, and which one a run resumes from.

transformers writes and reads them. A marker that is written last distinguishes a complete
checkpoint from one that a kill cut short.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safesteer import distributed
from safesteer.errors import InputError
from safesteer.files import read_json, write_json, write_text

METRICS = "metrics.jsonl"
_MARKER = "complete.json"


def mark_complete(folder: Path, step: int) -> None:
    """Write the marker of the checkpoint that was saved in `folder` after `step`."""
    write_json(
        folder / f"checkpoint-{step}" / _MARKER, {"step": step, "layout": distributed.layout()}
    )


def last_checkpoint(folder: Path, every: int = 1) -> Path | None:
    """Return the last complete checkpoint after a multiple of `every` steps; delete cut ones."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARKER).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max((path for path in complete if _step(path) % every == 0), key=_step, default=None)


def prepare_resume(folder: Path, layout: str, window: int) -> str | None:
    """The checkpoint to resume from, or None; the metrics of later steps are dropped.

    Args:
        folder: the folder of the training.
        layout: how this start lays out the weights, see `safesteer.distributed.layout`.
        window: steps that share their rollouts. Rollouts are not saved, so training resumes at the
            start of a window; only the last step of all may end within one.

    Raises:
        InputError: the checkpoint's weights have another layout.
    """
    checkpoint = last_checkpoint(folder, window)
    if checkpoint is not None:
        saved = read_json(checkpoint / _MARKER).get("layout", "replicated")
        if layout != saved:
            raise InputError(
                f"{checkpoint} holds weights laid out as '{saved}', and this start lays them out"
                f" as '{layout}'. Try: start as before, or delete {folder} to train from the"
                " beginning"
            )
    _trim_metrics(folder / METRICS, _step(checkpoint) if checkpoint else 0)
    return None if checkpoint is None else str(checkpoint)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _trim_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps after `steps`, which will be repeated."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= steps:
                kept.append(line)
        except (ValueError, KeyError):  # a kill cut this line short
            break
    write_text(path, "".join(line + "\n" for line in kept))
