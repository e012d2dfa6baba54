"""A run directory opened by one process, or by several that were started alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safesteer import distributed
from safesteer.config.settings import Settings
from safesteer.distill.plan import completions_per_process
from safesteer.errors import InputError
from safesteer.models.devices import check_device_map
from safesteer.models.files import fingerprint, locate
from safesteer.models.quantization import check_quantization
from safesteer.runs.directory import RunDirectory
from safesteer.runs.manifest import changed_keys


def open_run(path: str | Path, settings: Settings, *, fresh: bool = False) -> RunDirectory:
    """The run in the folder `path`: open for writing on the main process, read by the others.

    Raises InputError for settings that several processes cannot work with, and where processes
    were given different settings or folders; see `RunDirectory.open` for the rest.
    """
    processes, layout = distributed.count(), distributed.layout()
    completions_per_process(settings.train, processes)
    check_device_map(settings.model)
    if processes > 1 and ":" in settings.model.device:
        raise InputError(
            f"model.device = '{settings.model.device}' names one device for {processes} processes;"
            " leave it at auto"
        )
    opened: list[RunDirectory] = []

    def open_alone() -> dict[str, Any]:
        full = settings.train.method == "full"
        bits = check_quantization(settings.model, *locate(settings.model), full=full)
        if bits != "none" and layout != "whole":
            raise InputError(
                f"{settings.model.id} in {bits} cannot be spread over processes; start copies of"
                " it (ddp), or a single process"
            )
        model = fingerprint(settings.model)
        opened.append(RunDirectory.open(path, settings=settings, model=model, fresh=fresh))
        return given

    given = {"folder": os.path.realpath(path), "settings": settings.model_dump(mode="json")}
    told = distributed.on_main(open_alone)
    if different := changed_keys(told, given):
        raise InputError(
            f"process {distributed.index()} was given another {', '.join(different[:4])} than"
            " process 0; start all processes with the same command"
        )
    if not opened:
        if not RunDirectory.is_run(path):
            raise InputError(f"{path} is not a folder that all processes share; choose one")
        opened.append(RunDirectory.load(path))
    try:
        distributed.meet()
    except BaseException:
        opened[0].close()
        raise
    return opened[0]
