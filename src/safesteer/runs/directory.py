"""The run directory: one folder with the settings, the work and the results of a run.

Opening a run makes or checks the folder, takes its lock and reads its manifest; stages record
themselves in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safesteer.config.load import dump_settings, load_settings
from safesteer.config.settings import Settings
from safesteer.errors import InputError
from safesteer.files import (
    TEMPORARY_PATTERN,
    is_disk_full,
    write_error,
    write_json,
    write_text,
)
from safesteer.runs.lock import LOCK_NAME, RunLock
from safesteer.runs.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    Manifest,
    read_manifest,
    recorded_outputs,
)
from safesteer.runs.own_files import CONFIG_NAME, FOLDERS, delete_own_files
from safesteer.runs.stage import StageRecord, check_outputs
from safesteer.runs.system import hardware, versions


class StageCost(NamedTuple):
    """The cost of one stage: wall-clock seconds and peak memory in bytes."""

    stage: str
    seconds: float
    peak_memory_bytes: int


class RunDirectory:
    """A run on disk. `open` it to work in it, or `load` it to read it."""

    def __init__(
        self, path: Path, settings: Settings, manifest: Manifest, lock: RunLock | None
    ) -> None:
        self.path = path
        self.settings = settings
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls, path: str | Path, *, settings: Settings, model: Mapping[str, Any], fresh: bool = False
    ) -> RunDirectory:
        """Make the folder of a run, or resume the run in it; it stays locked until `close`.

        Args:
            settings: written to config.yaml.
            model: {"id", "revision", "sha256"} of the base.
            fresh: first delete what a run writes, and nothing else. The folder must have a
                manifest that can be read, and nothing foreign among what is deleted.
        """
        path = Path(path)
        _make_folder(path, fresh)
        lock = RunLock(path)
        try:
            stages = {}
            if fresh:
                if (path / MANIFEST_NAME).exists():
                    delete_own_files(path, recorded_outputs(path))
            elif (path / MANIFEST_NAME).exists():
                earlier = read_manifest(path)
                if earlier["model"].get("sha256") != model["sha256"]:
                    raise InputError(
                        f"{path} holds a run of another model, {earlier['model'].get('id')}. Try:"
                        " another --output-dir, or --fresh"
                    )
                stages = earlier["stages"]
                model = {**earlier["model"], **model}  # keeps what was measured, such as the dtype
            _delete_temporary_files(path)
            manifest: Manifest = {
                "schema": SCHEMA,
                "stages": stages,
                "versions": versions(),
                "hardware": hardware(),
                "model": dict(model),
            }
            run = cls(path, settings, manifest, lock)
            # The manifest first: it marks the folder as a run, should this process die here.
            run.save_manifest()
            write_text(path / CONFIG_NAME, dump_settings(settings))
            return run
        except BaseException:
            lock.release()
            raise

    @classmethod
    def load(cls, path: str | Path) -> RunDirectory:
        """Read a run without locking it; its stages can be queried but not run."""
        if not os.path.exists(path):  # False for a name that no file can have, and an empty one
            shown = str(path)[:200] or "the folder ''"
            raise InputError(f"{shown} does not exist. Try: the folder of a run")
        path = Path(path)
        if not cls.is_run(path):
            raise InputError(
                f"{path} is not a run of safesteer: it has no {MANIFEST_NAME}. Try: `safesteer run`"
            )
        manifest = read_manifest(path)
        return cls(path, load_settings(path / CONFIG_NAME), manifest, None)

    @staticmethod
    def is_run(path: str | Path) -> bool:
        """Whether `path` is a folder with a manifest, and not a model."""
        return os.path.isfile(Path(path) / MANIFEST_NAME)  # a name can be too long for a path

    def stage(self, name: str, inputs: dict[str, Any]) -> StageRecord:
        """The record of the stage `name` with these inputs, nested JSON values."""
        return StageRecord(self, name, inputs)

    def output_hashes(self, name: str, *, incomplete: bool = False) -> dict[str, str]:
        """{path: sha256} of a finished stage, an input of later ones; {} if it is not finished.

        `incomplete` also takes those of a stage that wrote its outputs with gaps.
        """
        entry = self.manifest["stages"].get(name)
        statuses = ("done", "incomplete") if incomplete else ("done",)
        return dict(entry["outputs"]) if entry and entry["status"] in statuses else {}

    def check_outputs(self, *stages: str, only: tuple[str, ...] = ("",)) -> None:
        """Raise InputError unless the outputs of the finished ones of `stages` are unchanged.

        Whoever reads an output calls this first.

        Args:
            stages: their names.
            only: the first letters of the paths that are read.
        """
        for name in stages:
            check_outputs(self.path, self.output_hashes(name, incomplete=True), only)

    def summary(self) -> list[StageCost]:
        """The cost of every stage that was started, in the order of their starts."""
        return [
            StageCost(name, entry["seconds"], entry["peak_memory_bytes"])
            for name, entry in self.manifest["stages"].items()
        ]

    def save_manifest(self) -> None:
        """Write the manifest as it is now; RuntimeError unless `is_open`."""
        if not self.is_open:
            raise RuntimeError(f"{self.path} is not open for writing; use RunDirectory.open")
        write_json(self.path / MANIFEST_NAME, self.manifest)

    @property
    def is_open(self) -> bool:
        """Whether this process opened the run and has not closed it."""
        return self._lock is not None

    def reload(self) -> None:
        """Read the manifest again: another process writes it."""
        self.manifest = read_manifest(self.path)

    def close(self) -> None:
        """Let other processes work in the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _make_folder(path: Path, fresh: bool) -> None:
    """Make the folder, or check that it is empty or one of ours, leaving no trace if it is not."""
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file. Try: a folder as --output-dir")
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
        names -= {LOCK_NAME, *(entry.name for entry in path.glob(TEMPORARY_PATTERN))}
    except (OSError, ValueError) as error:  # a zero byte is a ValueError
        if is_disk_full(error):
            raise write_error(path, error) from error
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot use {path}: {why}. Try: another --output-dir") from None
    if MANIFEST_NAME in names:
        check = recorded_outputs if fresh else read_manifest
        check(path)
    elif names:
        raise InputError(
            f"{path} is not empty and holds no run of safesteer. Try: another --output-dir"
        )


def _delete_temporary_files(path: Path) -> None:
    """Remove what a killed process left half-written."""
    leftovers = list(path.glob(TEMPORARY_PATTERN))
    for name in FOLDERS:
        leftovers += (path / name).rglob(TEMPORARY_PATTERN)
    for leftover in leftovers:
        with suppress(OSError):
            leftover.unlink()
