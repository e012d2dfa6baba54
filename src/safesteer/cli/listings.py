"""Terminal tables of what is available: benchmarks, and the memory that a run needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from safesteer.cli.tables import table
from safesteer.evaluate.benchmarks import Benchmark
from safesteer.evaluate.benchmarks.forms import FORMS, PLAIN
from safesteer.evaluate.benchmarks.sources import found_files
from safesteer.report.words import size

if TYPE_CHECKING:  # both import torch
    from safesteer.memory.gpus import GpuFit
    from safesteer.pipeline.doctor import Memory


def memory_table(needed: Memory) -> RenderableType:
    """The predicted peak of every stage, and its largest parts."""
    place = needed.place
    shown = table(
        "stage",
        "peak",
        "largest parts",
        title=f"predicted peak memory on {place.device}",
        left=(0, 2),
    )
    for name, peak in needed.stages.items():
        largest = sorted(peak.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{part} {size(count)}" for part, count in largest)
        shown.add_row(name, size(peak.bytes), Text(parts))
    note = (
        f"{8 * place.size}-bit weights, prompts of up to {needed.prompt_tokens} tokens;"
        " Python and its libraries come on top"
    )
    return Group(shown, Text(note, style="dim"))


def gpu_table(fits: Sequence[GpuFit]) -> RenderableType:
    """The largest micro-batch of each training setup on each size of GPU."""
    columns = (f"{gigabytes} GB" for gigabytes in fits[0].micro_batches)
    shown = table("setup", "peak", *columns, title="micro-batch by GPU memory")
    for fit in fits:
        cells = (str(count or "-") for count in fit.micro_batches.values())
        shown.add_row(fit.setup, size(fit.peak), *cells)
    note = "largest train.per_device_train_batch_size that fits; -: not even 1"
    return Group(shown, Text(note, style="dim"))


def benchmark_table(benchmarks: Sequence[Benchmark], folder: Path | None) -> RenderableType:
    """The benchmarks by name, and their notes; with a folder, whether their files are in it."""
    columns = ("name", "kind", "prompts", "source", "license", "judge")
    shown = table(*columns, *(["file"] if folder else []))
    for column in shown.columns:
        column.justify = "right" if column.header == "prompts" else "left"
        column.no_wrap = column.header in ("name", "kind", "judge")
        column.overflow = "fold"
    notes = table("notes", "", left=(0, 1))
    for entry in benchmarks:
        source = entry.hub.id if entry.hub else "your file" if entry.prompts else "your settings"
        row = [
            entry.name,
            entry.kind.replace("_", "-"),
            f"{entry.prompts:,}" if entry.prompts else "",
            source + (" (gated)" if entry.gated else ""),
            entry.license,
            entry.judge,
        ]
        if folder:
            row.append("found" if found_files(entry, folder) else "")
        shown.add_row(*map(Text, row))
        if entry.note:
            notes.add_row(entry.name, Text(entry.note))
    forms = table("NAME+FORM", "its requests in a form", left=(0, 1))
    for form, how in FORMS.items():
        forms.add_row(f"+{form}", Text(how.summary))
    return Group(shown, Text(), notes, Text(), forms)


def benchmark_facts(entry: Benchmark, folder: Path | None) -> dict[str, Any]:
    """All facts about one benchmark."""
    content: dict[str, Any] = {
        "kind": entry.kind.replace("_", "-"),
        "metric": entry.metric.replace("_", " "),
        "prompts": f"{entry.prompts:,}" if entry.prompts else "depends on the file",
        "license": entry.license,
        "citation": entry.citation,
    }
    if entry.hub is not None:
        content["hub"] = str(entry.hub) + (" (gated)" if entry.gated else "")
        content["column"] = entry.hub.column
        if entry.hub.where:
            content["rows with"] = _conditions(entry.hub.where)
    files = []
    for file in entry.files:
        where = f", rows with {_conditions(file.where)}" if file.where else ""
        files.append(f"{file.path}, column {file.column}{where}")
    if files:
        content["file"] = " or ".join(files)
    if entry.harness is not None:
        harness = entry.harness
        shots = "the task's default" if harness.shots is None else str(harness.shots)
        content |= {
            "lm-eval task": f"{harness.task} ({harness.metric})",
            "few-shot examples": shots,
            "chat template": "yes" if harness.chat else "no",
        }
        for split, paths in harness.files.items():
            content[f"file for {split}"] = " or ".join(paths)
    if folder is not None:
        found = found_files(entry, folder)
        content["found"] = ", ".join(map(str, found)) or f"nothing below {folder}"
    content["judge"] = entry.judge
    content["form"] = entry.form.summary if entry.form != PLAIN else ""
    content["checked"] = entry.checked
    content["note"] = entry.note
    return {key: value for key, value in content.items() if value}


def _conditions(where: Mapping[str, object]) -> str:
    return " and ".join(f"{name} = {value!r}" for name, value in where.items())
