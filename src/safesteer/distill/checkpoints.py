"""Checkpoints of a training: which of them are complete, and which one a run resumes from.

transformers writes and reads them. A marker that is written last distinguishes a complete
checkpoint from one that a kill cut short, and records its files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safesteer import distributed
from safesteer.errors import InputError, without_advice
from safesteer.files import read_json, sha256_file, write_json, write_text

METRICS = "metrics.jsonl"
_MARKER = "complete.json"
# Bytes. Weights of full fine-tuning can be larger; a truncated file shows by its size.
_HASHED = 1 << 30


def mark_complete(folder: Path, step: int) -> None:
    """Write the marker of the checkpoint that was saved in `folder` after `step`."""
    checkpoint = folder / f"checkpoint-{step}"
    files = {
        path.relative_to(checkpoint).as_posix(): _record(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != _MARKER
    }
    marker = {"step": step, "layout": distributed.layout(), "files": files}
    write_json(checkpoint / _MARKER, marker)


def last_checkpoint(folder: Path, every: int = 1, before: int | None = None) -> Path | None:
    """Return the last complete checkpoint after a multiple of `every` steps; delete cut ones.

    With `before`, it is the last one of earlier steps.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARKER).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    usable = (p for p in complete if _step(p) % every == 0 and (not before or _step(p) < before))
    return max(usable, key=_step, default=None)


def prepare_resume(folder: Path, layout: str, window: int) -> str | None:
    """The checkpoint to resume from, or None; the metrics of later steps are dropped.

    Args:
        folder: the folder of the training.
        layout: how this start lays out the weights, see `safesteer.distributed.layout`.
        window: steps that share their rollouts. Rollouts are not saved, so training resumes at the
            start of a window; only the last step of all may end within one.

    Raises:
        InputError: the checkpoint is damaged, or its weights have another layout.
    """
    checkpoint = last_checkpoint(folder, window)
    if checkpoint is not None:
        try:
            saved = _checked(checkpoint).get("layout", "replicated")
        except InputError as error:
            earlier = last_checkpoint(folder, window, before=_step(checkpoint))
            then = f"resumes from {earlier.name}" if earlier else "starts from the beginning"
            raise InputError(
                f"{without_advice(error)}. Try: delete {checkpoint} and run the same command"
                f" again, which {then}"
            ) from None
        if layout != saved:
            raise InputError(
                f"{checkpoint} holds weights laid out as '{saved}', and this start lays them out"
                f" as '{layout}'. Try: start as before, or delete {folder} to train from the"
                " beginning"
            )
    _trim_metrics(folder / METRICS, _step(checkpoint) if checkpoint else 0)
    return None if checkpoint is None else str(checkpoint)


def _record(path: Path) -> dict[str, Any]:
    """The size of a file, and its hash unless hashing it would delay the training."""
    size = path.stat().st_size
    return {"bytes": size, **({"sha256": sha256_file(path)} if size <= _HASHED else {})}


def _checked(checkpoint: Path) -> dict[str, Any]:
    """The marker of a checkpoint whose files are those that it records; InputError if not."""
    marker = read_json(checkpoint / _MARKER)
    if not isinstance(marker, dict) or not isinstance(marker.get("files", {}), dict):
        raise InputError(f"{checkpoint / _MARKER} was damaged or changed after it was written")
    for name, recorded in marker.get("files", {}).items():
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if path.stat().st_size != recorded["bytes"] or (
            "sha256" in recorded and sha256_file(path) != recorded["sha256"]
        ):
            raise InputError(f"{path} was damaged or changed after it was written")
    return marker


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _trim_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps after `steps`, which will be repeated."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= steps:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a kill cut this line short
            break
    write_text(path, "".join(line + "\n" for line in kept))
