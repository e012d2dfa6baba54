"""Records of stages: whether a stage has to run, and what running it took and wrote.

A stage is skipped when its recorded inputs equal its present ones and its recorded outputs are
still on the disk, unchanged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from safesteer.errors import InputError, SafeSteerError
from safesteer.files import is_disk_full, sha256_file, write_error
from safesteer.runs.manifest import Manifest, StageEntry, Status, as_json, changed_keys
from safesteer.runs.system import MemorySampler

STAGES = ("direction", "tokens", "repairs", "train", "evaluate", "report")


def stages_to(last: str) -> tuple[str, ...]:
    """The stages up to `last`, in their order."""
    return STAGES[: STAGES.index(last) + 1]


class OpenRun(Protocol):
    """The parts of a `RunDirectory` that a stage needs."""

    path: Path
    manifest: Manifest

    def save_manifest(self) -> None: ...


class Incomplete(SafeSteerError):
    """A stage wrote its outputs, but not all of what they should hold (exit code 1).

    Raised within the stage. The same command runs it again, and later stages use what there is.
    """


class StageRecord:
    """The record of one stage, pending or finished. Made by `RunDirectory.stage`.

    Example::

        stage = run.stage("direction", inputs={...})
        if not stage.finished:
            with stage:
                ...
                stage.add_output(path)
    """

    def __init__(self, run: OpenRun, name: str, inputs: dict[str, Any]) -> None:
        self.name = name
        self._run = run
        self._inputs = as_json(inputs)
        self._outputs: list[Path] = []
        self._earlier: StageEntry | None = None
        self._entry = run.manifest["stages"].get(name)
        self._verified: bool | None = None
        # Dotted keys of the inputs that differ from the recorded ones: why it runs again.
        self.changed: list[str] = []
        if self._entry is not None:
            self.changed = changed_keys(self._entry["inputs"], self._inputs)

    @property
    def resumes(self) -> bool:
        """Whether an attempt with the same inputs was started and not finished.

        Otherwise partial files in the run belong to other inputs: delete them before entering the
        stage, or they will pass for a part of this attempt.
        """
        return self._entry is not None and not self.changed and self._entry["status"] != "done"

    @property
    def finished(self) -> bool:
        """Whether the stage is done with these inputs; every output is hashed once to be sure.

        A stage whose output folders were deleted altogether is not finished; if only some of the
        outputs are missing or changed, that is an InputError.
        """
        if self._verified is None:
            self._verified = self._verify()
        return self._verified

    def add_output(self, path: str | Path) -> None:
        """Name a file in the run that the stage writes, or a folder whose files all count."""
        run = Path(os.path.abspath(self._run.path))
        path = Path(path)
        if path.is_relative_to(self._run.path):
            path = path.relative_to(self._run.path)
        absolute = Path(os.path.abspath(run / path))
        if run not in absolute.parents:
            raise ValueError(f"{path} is not in the run {self._run.path}")
        self._outputs.append(self._run.path / absolute.relative_to(run))

    def save_progress(self) -> None:
        """Count the time so far. Time since the last call is lost if the stage is stopped.

        Call it when the stage has saved work that a later attempt resumes from.
        """
        self._saved = time.monotonic() - self._started
        self._record("running")

    def __enter__(self) -> StageRecord:
        self._earlier = self._entry if self.resumes else None
        self._outputs = []
        self._verified = False
        self.changed = []
        self._sampler = MemorySampler()
        self._started = time.monotonic()
        self._saved = 0.0  # seconds of work that a later attempt need not repeat
        self._record("running")
        self._sampler.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._sampler.stop()
        if error is None:
            try:
                self._record("done", self._hash_outputs())
                self._verified = True
            except BaseException as failure:
                self._record_failure(failure)
                raise
            return
        if isinstance(error, Incomplete):
            self._record("incomplete", self._hash_outputs(), str(error))
            return
        self._record_failure(error)
        explained = isinstance(error, SafeSteerError)
        if isinstance(error, Exception) and not explained and is_disk_full(error):
            # Libraries that write checkpoints raise errors of their own.
            where = getattr(error, "filename", None) or self._run.path
            raise write_error(where, error) from error

    def _record_failure(self, error: BaseException) -> None:
        # On a full disk the record cannot be written either; the first error is the one to show.
        with suppress(SafeSteerError):
            self._record("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")

    def _record(
        self, status: Status, outputs: dict[str, str] | None = None, problem: str = ""
    ) -> None:
        seconds = self._saved if outputs is None else time.monotonic() - self._started
        peak, gpu_peak = self._sampler.peak_bytes, self._sampler.gpu_peak_bytes
        if self._earlier is not None:
            seconds += self._earlier["seconds"]
            peak = max(peak, self._earlier["peak_memory_bytes"])
            gpu_peak = max(gpu_peak, self._earlier.get("gpu_memory_bytes", 0))
        entry: StageEntry = {
            "status": status,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak,
            "inputs": self._inputs,
            "outputs": outputs or {},
        }
        if problem:
            entry["problem"] = problem
        if gpu_peak:
            entry["gpu_memory_bytes"] = gpu_peak
        self._entry = entry
        self._run.manifest["stages"][self.name] = entry
        self._run.save_manifest()

    def _hash_outputs(self) -> dict[str, str]:
        hashes: dict[str, str] = {}
        for output in self._outputs:
            files = sorted(output.rglob("*")) if output.is_dir() else [output]
            for file in files:
                if file.is_dir():
                    continue
                if not file.is_file():
                    raise SafeSteerError(
                        f"stage {self.name} did not write {file}. Try: the same command again"
                    )
                hashes[file.relative_to(self._run.path).as_posix()] = sha256_file(file)
        return hashes

    def _verify(self) -> bool:
        if self._entry is None or self._entry["status"] != "done" or self.changed:
            return False
        outputs = self._entry["outputs"]
        tops = [self._run.path / top for top in dict.fromkeys(o.split("/")[0] for o in outputs)]
        if tops and not any(top.exists() for top in tops):
            return False
        check_outputs(self._run.path, outputs)
        return True


def check_outputs(run: Path, outputs: Mapping[str, str], prefix: tuple[str, ...] = ("",)) -> None:
    """Raise InputError for a file of {path: sha256} that is missing or was changed.

    Only those are read whose path starts with one of `prefix`.
    """
    for output, expected in outputs.items():
        path = run / output
        if not output.startswith(prefix) or (path.is_file() and sha256_file(path) == expected):
            continue
        what = "was damaged or changed after it was written" if path.exists() else "is missing"
        folders = " and ".join(dict.fromkeys(str(run / o.split("/")[0]) for o in outputs))
        raise InputError(
            f"{path} {what}. Try: delete {folders} and run `safesteer run {run}` to make it again"
        )
