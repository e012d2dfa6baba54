"""One export: written under another name, read back with its tool, compared, and only then kept.

Knows the formats by the table below; what each writes and how it is read is in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safesteer.errors import SafeSteerError
from safesteer.events import Reporter
from safesteer.export import adapter, gguf_file, merged, steered, teacher
from safesteer.export.output import (
    RECORD,
    ROUNDED,
    check_name,
    check_output,
    require_space,
    written_whole,
)
from safesteer.export.proof import BOUNDS, Candidate, compare, expect
from safesteer.export.source import Source, load_source
from safesteer.files import write_json
from safesteer.models.load import quiet_libraries
from safesteer.runs.directory import RunDirectory
from safesteer.runs.system import versions


class Format(NamedTuple):
    """One way to hand on a run.

    Attributes:
        variant: who of the run it is, aligned or teacher.
        tool: what reads it back.
        write: makes the file or folder from a source, in a type.
        read: loads it again.
        whole: whether layers in few bits have to be ordinary ones for it.
    """

    variant: str
    tool: str
    write: Callable[[Source, Path, torch.dtype], None]
    read: Callable[[Source, Path], Candidate]
    whole: bool = True


FORMATS = {
    "adapter": Format("aligned", "transformers and peft", adapter.write, adapter.read, False),
    "merged": Format("aligned", "transformers", merged.write, merged.read),
    "gguf": Format("aligned", "transformers", gguf_file.write, gguf_file.read),
    "teacher": Format("teacher", "transformers", teacher.write, teacher.read),
    "steered": Format("teacher", "lm-eval", steered.write, steered.read),
}


@dataclass(frozen=True)
class Export:
    """What was written, and how well it agrees with the run.

    Attributes:
        format: key of `FORMATS`.
        dtype: type of the weights.
        difference: largest difference of a next-token log-probability, in nats.
        bound: what it was allowed to be.
        read_by: the tools that read it back.
        prompts: how many prompts were compared.
    """

    format: str
    dtype: str
    difference: float
    bound: float
    read_by: list[str]
    prompts: int


def export(
    run_path: str | Path,
    name: str,
    output: str | Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Export:
    """Write a run's aligned model or teacher for other tools, and prove that it is the same.

    Args:
        run_path: a trained run.
        name: a key of `FORMATS`.
        output: folder, or file for gguf.
        dtype: float32, bfloat16 or float16; None for the type that the base is stored in.
        force: replace an earlier export.
        reporter: told what happens.

    Raises InputError for wrong input and SafeSteerError when the export is not the run's model; in
    both cases nothing is left behind.
    """
    reporter, form, output = reporter or Reporter(), FORMATS[name], Path(output)
    run = RunDirectory.load(run_path)
    check_name(name, dtype)
    check_output(output, name, force)
    source = load_source(run, form.variant, reporter, whole=form.whole)
    stored = torch.float32
    if name in ROUNDED:
        stored = getattr(torch, dtype) if dtype else source.stored_dtype()
        weights = source.variant.model.model.parameters()
        require_space(output, stored.itemsize * sum(p.numel() for p in weights))
    bound = BOUNDS[stored]
    expected = expect(source)
    shown = str(stored).removeprefix("torch.")
    with written_whole(output) as partial, quiet_libraries():
        reporter.stage("export", f"writing {name} in {shown}")
        form.write(source, partial, stored)
        reporter.stage("export", f"reading it back with {form.tool}")
        candidate = _read(form, source, partial)
        difference = compare(expected, candidate)
        if not difference <= bound:
            raise SafeSteerError(
                f"the export is not the run's model: read back with {form.tool}, a next-token"
                f" log-probability differs by {difference:.3g}, more than the {bound:g} allowed for"
                f" {shown}; nothing was kept"
            )
        read_by = [form.tool] + (["llama.cpp"] if candidate.llama_cpp else [])
        made = Export(name, shown, difference, bound, read_by, len(expected.prompts))
        if partial.is_dir():
            write_json(partial / RECORD, _record(source, made))
    return made


def _read(form: Format, source: Source, target: Path) -> Candidate:
    """Load an export; whatever its tool cannot do with it is one line."""
    try:
        return form.read(source, target)
    except SafeSteerError:
        raise
    except Exception as error:  # every tool has classes of its own
        raise SafeSteerError(
            f"{form.tool} cannot read the export ({type(error).__name__}: {error}); nothing was"
            " kept"
        ) from error


def _record(source: Source, made: Export) -> dict[str, Any]:
    """What lies in an exported folder as `RECORD`."""
    base = source.variant.model
    model = {"id": source.settings.id, "revision": base.revision, "sha256": base.sha256}
    return {"schema": 1, **asdict(made), "base": model, "versions": versions()}
