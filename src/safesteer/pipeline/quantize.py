"""GGUF files of a run in fewer bits, each measured in llama.cpp's server.

A file is kept only if it behaves as the run's aligned model, by the rules of `verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safesteer.errors import SafeSteerError
from safesteer.evaluate.served import SETS, Answer, Comparison
from safesteer.events import Reporter
from safesteer.export.llama_server import serving
from safesteer.export.output import check_export, replacing
from safesteer.export.quantize import quantize, quantized_path, require_tools
from safesteer.files import write_json
from safesteer.pipeline.verify import load_questions, verify
from safesteer.runs.directory import RunDirectory
from safesteer.runs.system import versions

RECORD = "eval/quantized.json"
_LOSSES = {
    "base": "answers as the base",
    "mixed": "answers partly as the base",
    "other": "answers as neither the aligned model nor the base",
    "cut": "cuts its answers short",
}


@dataclass(frozen=True)
class Measured:
    """A GGUF file, and how it behaves in llama.cpp's server."""

    format: str  # a dtype, or a type of llama.cpp; "in the run" for the run's stored answers
    bytes: int  # 0 for those
    harmful: dict[str, Any]  # refusal rate, as an entry of eval/MODEL.json
    harmless: dict[str, Any]
    alike: int  # answers that begin as the aligned model's
    answers: int
    loss: str  # how it differs from the run's aligned model; empty if it does not
    kept: bool = True


def check_quantize(run: RunDirectory, output: Path, types: Sequence[str], *, force: bool) -> None:
    """Raise InputError unless the run is evaluated, the tools are there and the paths free."""
    require_tools()
    for name in types:
        check_export(quantized_path(output, name), "gguf", force)
    load_questions(run)


def export_quantized(
    run: RunDirectory,
    output: Path,
    dtype: str,
    types: Sequence[str],
    *,
    allow_loss: bool = False,
    reporter: Reporter | None = None,
) -> list[Measured]:
    """Measure a run's GGUF file, then write and measure it in each of the types.

    The figures are kept in the run, in eval/quantized.json.

    Args:
        run: an evaluated run.
        output: the run's exported GGUF file, not quantized.
        dtype: of its weights.
        types: names of llama.cpp's types; the files lie beside `output`.
        allow_loss: keep files that behave differently, too.
        reporter: told about progress.
    """
    reporter = reporter or Reporter()
    rows = [_stored(run), _measure(run, output, dtype, reporter)]
    for name in types:
        try:
            with replacing(quantized_path(output, name)) as partial:
                reporter.stage("export", f"quantizing to {name}")
                quantize(output, partial, name)
                row = _measure(run, partial, name, reporter, keep_lossy=allow_loss)
                rows.append(row)
                if not row.kept:
                    raise _Lossy
        except _Lossy:
            continue
    content = {
        "schema": 1,
        "tool": "llama.cpp",
        "aligned": run.output_hashes("evaluate").get("eval/aligned.json"),  # sha256
        "files": [asdict(row) for row in rows],
        "versions": versions(),
    }
    write_json(run.path / RECORD, content)
    return rows


def loss_line(rows: Sequence[Measured]) -> str:
    """One line on the files that behave differently; empty if there is none."""
    lossy = [row for row in rows if row.loss]
    if not lossy:
        return ""
    found = "; ".join(
        f"{row.format} {row.loss}" + ("" if row.kept else " (deleted)") for row in lossy
    )
    return f"in llama.cpp, {found}. Try: a type of more bits, or --allow-loss"


def _stored(run: RunDirectory) -> Measured:
    """The run's aligned model, by the answers that the run stored."""
    questions = load_questions(run)
    found = Comparison([Answer(question, question.aligned["completion"]) for question in questions])
    harmful, harmless = (found.entry(name, "aligned") for name in SETS)
    return Measured("in the run", 0, harmful, harmless, len(questions), len(questions), "")


class _Lossy(SafeSteerError):
    """A file that is not kept."""


def _measure(
    run: RunDirectory, file: Path, name: str, reporter: Reporter, *, keep_lossy: bool = True
) -> Measured:
    with serving(file) as url:
        found = verify(url, run.path, reporter=reporter)
    comparison = found.comparison
    loss = ""
    if found.problem:
        harmful, harmless = (comparison.refusals(key) for key in SETS)
        loss = _LOSSES.get(comparison.finding) or (
            f"refuses {harmful['served']} of {harmful['n']} harmful and {harmless['served']} of"
            f" {harmless['n']} harmless prompts, the run's aligned model {harmful['aligned']} and"
            f" {harmless['aligned']}"
        )
    return Measured(
        name,
        file.stat().st_size,
        comparison.entry("harmful", "served"),
        comparison.entry("harmless", "served"),
        comparison.alike("aligned"),
        len(comparison.answers),
        loss,
        kept=keep_lossy or not loss,
    )
