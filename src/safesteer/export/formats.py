"""Export formats, and one export: written, read back with its tool, verified, then kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safesteer.errors import SafeSteerError, reason
from safesteer.events import Reporter
from safesteer.export import (
    adapter,
    control_vector,
    gguf_file,
    lora_gguf,
    merged,
    steered,
    teacher,
)
from safesteer.export.output import (
    RECORD,
    WITH_DTYPE,
    check_export,
    check_name,
    replacing,
    require_space,
)
from safesteer.export.source import Source, load_source
from safesteer.export.verify import BOUNDS, Candidate, compare, expect, mismatch
from safesteer.files import write_json
from safesteer.models.quiet import quiet_libraries
from safesteer.runs.directory import RunDirectory
from safesteer.runs.system import versions
from safesteer.runs.worse import check_not_worse


class Format(NamedTuple):
    """One way to export a run."""

    variant: str  # the model that is exported, aligned or teacher
    tool: str  # the library that reads it back
    write: Callable[[Source, Path, torch.dtype], None]  # to a file or folder, in a dtype
    read: Callable[[Source, Path], Candidate]  # loads what was written
    dequantize: bool = True  # whether a quantized base needs ordinary layers first


FORMATS = {
    "adapter": Format("aligned", "transformers and peft", adapter.write, adapter.read, False),
    "merged": Format("aligned", "transformers", merged.write, merged.read),
    "gguf": Format("aligned", "transformers", gguf_file.write, gguf_file.read),
    "lora-gguf": Format("aligned", "gguf", lora_gguf.write, lora_gguf.read),
    "teacher": Format("teacher", "transformers", teacher.write, merged.read),
    "steered": Format("teacher", "lm-eval", steered.write, steered.read),
    "control-vector": Format("teacher", "gguf", control_vector.write, control_vector.read),
}


@dataclass(frozen=True)
class Export:
    """A finished export, and how well it agrees with the run."""

    format: str  # key of `FORMATS`
    dtype: str  # of the weights
    difference: float  # largest difference of a next-token log-probability, in nats
    bound: float  # largest difference allowed, in nats
    read_by: list[str]  # the tools that read it back
    prompts: int  # number of prompts compared


def export(
    run_path: str | Path,
    name: str,  # a key of FORMATS
    output: str | Path,  # a folder; a file for those of `FILES`
    *,
    dtype: str | None = None,
    force: bool = False,
    allow_worse: bool = False,
    reporter: Reporter | None = None,
) -> Export:
    """Write a run's aligned model or teacher for other tools, and verify that it is the same.

    Without `dtype`, weights keep the dtype of the base's files. Raises InputError for wrong input,
    SafeSteerError if the export is not the run's model, and WorseThanBase for an aligned model that
    is worse than its base, unless `allow_worse`; none leaves anything behind.
    """
    reporter, form, output = reporter or Reporter(), FORMATS[name], Path(output)
    run = RunDirectory.load(run_path)
    check_name(name, dtype)
    check_export(output, name, force)
    if form.variant == "aligned":
        check_not_worse(run, allow_worse=allow_worse)
    source = load_source(run, form.variant, reporter, dequantize=form.dequantize)
    stored = torch.float32
    if name in WITH_DTYPE:
        stored = getattr(torch, dtype) if dtype else source.stored_dtype()
        weights = source.variant.model.model.parameters()
        require_space(output, stored.itemsize * sum(p.numel() for p in weights))
    expected = expect(source)
    shown, bound = str(stored).removeprefix("torch."), BOUNDS[stored]
    with replacing(output) as partial, quiet_libraries():
        reporter.stage("export", f"writing {name} in {shown}")
        form.write(source, partial, stored)
        reporter.stage("export", f"reading it back with {form.tool}")
        candidate = _read(form, source, partial)
        difference = compare(expected, candidate)
        if not difference <= bound:
            raise mismatch(
                f"read back with {form.tool}, a next-token log-probability differs by"
                f" {difference:.3g} nats; the limit for {shown} is {bound:g}"
            )
        read_by = [form.tool] + (["llama.cpp"] if candidate.llama_cpp else [])
        made = Export(name, shown, difference, bound, read_by, len(expected.prompts))
        if partial.is_dir():
            write_json(partial / RECORD, _record(source, made))
    return made


def _read(form: Format, source: Source, target: Path) -> Candidate:
    """Load an export; any failure of its tool becomes one line."""
    try:
        return form.read(source, target)
    except SafeSteerError:
        raise
    except Exception as error:  # every tool raises its own classes
        raise SafeSteerError(
            f"{form.tool} cannot read the export, which was deleted{reason(error)}. Try: another"
            " --dtype or --format"
        ) from error


def _record(source: Source, made: Export) -> dict[str, Any]:
    """The content of `RECORD` in an exported folder."""
    base = source.variant.model
    model = {"id": source.settings.id, "revision": base.revision, "sha256": base.sha256}
    return {"schema": 1, **asdict(made), "base": model, "versions": versions()}
