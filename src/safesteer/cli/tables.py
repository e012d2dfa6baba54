"""The tables that commands print, made from the content of a run's JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from safesteer.evaluate.benchmarks import Benchmark
from safesteer.evaluate.benchmarks.forms import FORMS, PLAIN
from safesteer.evaluate.benchmarks.sources import found_files
from safesteer.report.words import duration, rounded_words, size
from safesteer.runs.directory import RunDirectory

if TYPE_CHECKING:  # both import torch
    from safesteer.memory.cards import Fit
    from safesteer.pipeline.doctor import Memory

# Entry of eval/*.json -> what it is called, and which way is better.
RATES = {
    "harmful": "harmful requests refused, higher is better",
    "harmless": "harmless requests refused, lower is better",
    "borderline": "borderline requests refused, lower is better",
}
# (metric, kind) -> the same, after the benchmark's name.
MEASURED = {
    ("attack_success_rate", "safety"): "harmful requests answered, lower is better",
    ("refusal_rate", "safety"): "harmful requests refused, higher is better",
    ("refusal_rate", "over_refusal"): "harmless requests refused, lower is better",
    ("accuracy", "capability"): "right, higher is better",
    ("win_rate", "capability"): "answers preferred, higher is better",
}
DRIFT = {
    "agreement": "same next token as base, higher is better",
    "divergence": "KL(base || aligned) per token, lower is better",
}
TOP_TOKENS = 20
TOP_CANDIDATES = 8


def table(*columns: str, title: str = "") -> Table:
    """An empty table; every column but the first is right-aligned."""
    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index == 0 else "right", header_style="bold")
    made.padding = (0, 2, 0, 0)
    return made


def stage_result(stage: str, content: dict[str, Any]) -> list[RenderableType]:
    """What to print after a stage; `content` is its JSON file."""
    if stage == "direction":
        return _direction(content)
    if stage == "tokens":
        return _tokens(content)
    if stage == "push":
        return [_pushed(content)]
    rates = "  ".join(
        f"{name} {entry['value']:.1%}"
        for name, entry in content["benchmarks"].items()
        if name in RATES and entry["value"] is not None
    )
    lines = [f"  {content['model']} refuses: {rates}"] if rates else []
    lines += [
        f"  {content['model']}, {_label(name, entry)}: {_rate(entry)}"
        for name, entry in content["benchmarks"].items()
        if name not in RATES and name not in DRIFT
    ]
    return [Text(line) for line in lines]


def _pushed(content: dict[str, Any]) -> Text:
    who = "public" if content["public"] else "private"
    what = "with transcripts" if content["transcripts"] else "without transcripts"
    line = f"pushed: {content['url']} ({who}; {len(content['files'])} files, {what})"
    if removed := len(content["removed"]):
        line += f"; {removed} files of an earlier push removed, which older commits still hold"
    return Text(line, overflow="ignore", no_wrap=True)


def update_line(metrics: dict[str, Any]) -> str:
    """One training update in a few words."""
    parts = [f"loss {metrics['loss']:.4f}"]
    if metrics.get("refusal_rate") is not None:
        parts.append(f"refused {metrics['refusal_rate']:.0%}")
    if metrics.get("anchor_refusal_rate") is not None:
        parts.append(f"anchors refused {metrics['anchor_refusal_rate']:.0%}")
    if metrics.get("unfinished"):
        parts.append(f"no answer {metrics['unfinished']:.0%}")
    if metrics.get("mass_student") is not None:
        parts.append(f"mass {metrics['mass_student']:.2f} of {metrics['mass_teacher']:.2f}")
    return "  ".join(parts)


def evaluation(results: dict[str, dict[str, Any]], title: str = "") -> RenderableType:
    """Rates of one or more models side by side; `results` is {model: benchmarks}.

    Below, how much a model differs from its base on the same prompts, where that is known.
    """
    made = table("", *results, title=title)
    entries = list(results.values())
    measured = {name: entry for benchmarks in entries for name, entry in benchmarks.items()}
    names = [name for name in RATES if name in measured]
    names += [name for name in measured if name not in RATES and name not in DRIFT]
    for name in names:
        found = [benchmarks.get(name) for benchmarks in entries]
        made.add_row(_label(name, measured[name]), *map(_rate, found))
        for row in _by_judge(found):
            made.add_row(*row)
    for label, share, of in (
        ("answers that end in a loop", "looping", "n"),
        ("refusals that end within the limit", "refusals_ended", "refusals"),
    ):
        cells = [_of_all(benchmarks, share, of) for benchmarks in results.values()]
        if any(cells):
            made.add_row(label, *cells)
    for name, label in DRIFT.items():
        cells = [_drift(name, benchmarks.get(name)) for benchmarks in results.values()]
        if any(cells):
            made.add_row(label, *cells)
    changes = [
        (name if len(results) == 1 or who == "aligned" else f"{who}, {name}", entry["versus_base"])
        for who, benchmarks in results.items()
        for name, entry in benchmarks.items()
        if "versus_base" in entry
    ]
    if not changes:
        return made
    below = table("", "", title="against the base, on the same prompts")
    below.show_header = False
    below.columns[1].justify = "left"
    for name, versus in changes:
        below.add_row(name, Text(versus["words"]))
    return Group(made, Text(), below)


def print_summary(
    console: Console,
    run: RunDirectory,
    results: dict[str, dict[str, Any]],
    last: str,
    seconds: float,
) -> None:
    """The end of a run: before and after, where the time went, and what to do next."""
    console.print()
    if last in ("evaluate", "report"):
        console.print(evaluation(results, "before and after (95 % interval, number of prompts)"))
        console.print()
    costs = table("stage", "time", "peak memory", title="where the time went")
    for cost in run.summary():
        costs.add_row(cost.stage, duration(cost.seconds), size(cost.peak_memory_bytes))
    costs.add_row("this command", duration(seconds), "")
    console.print(costs)
    console.print()
    console.print(Text(f"run: {run.path}"), soft_wrap=True)
    if last == "report":
        console.print(Text(f"report: {run.path / 'report.html'}"), soft_wrap=True)
        console.print(Text(f"model card: {run.path / 'README.md'}"), soft_wrap=True)
    if last in ("train", "evaluate", "report"):
        from safesteer.models.loading_code import loading_code

        console.print(Text("load it:"))
        for line in loading_code(run.path, run.settings.model):
            console.print(Text("  " + line), soft_wrap=True)
        console.print(Text(f"or talk to it: safesteer chat {run.path}"), soft_wrap=True)


def facts(title: str, content: dict[str, Any]) -> Table:
    """Two columns: what and how much."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in content.items():
        made.add_row(name, Text(str(value)))
    return made


def memory_table(needed: Memory) -> RenderableType:
    """The predicted peak of every stage, and what the bytes are for."""
    place = needed.place
    shown = table("stage", "peak", "of which", title=f"memory of a run on {place.device}")
    shown.columns[2].justify = "left"
    for name, peak in needed.stages.items():
        largest = sorted(peak.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{part} {size(count)}" for part, count in largest)
        shown.add_row(name, size(peak.bytes), Text(parts))
    note = f"weights of {8 * place.size} bits, prompts of {needed.prompt_tokens} tokens at most"
    return Group(shown, Text(f"{note}; beyond what Python and its libraries take", style="dim"))


def card_table(fits: Sequence[Fit]) -> RenderableType:
    """Which card fits which way to train: with which micro batch."""
    cards = list(fits[0].micro_batches)
    shown = table(
        "way to train", "peak", *(f"{card} GB" for card in cards), title="cards, by micro batch"
    )
    for fit in fits:
        cells = [str(fit.micro_batches[card] or "-") for card in cards]
        shown.add_row(fit.option, size(fit.peak), *cells)
    return Group(
        shown,
        Text("the largest train.per_device_train_batch_size that fits; -: not even 1", style="dim"),
    )


def benchmark_table(benchmarks: Sequence[Benchmark], folder: Path | None) -> RenderableType:
    """The benchmarks by name, and their notes; with a folder, which of their files are there."""
    shown = table("name", "kind", "prompts", "from", "license", "judge", *(["file"] * bool(folder)))
    for column in shown.columns:
        column.justify = "right" if column.header == "prompts" else "left"
        column.no_wrap = column.header in ("name", "kind", "judge")
        column.overflow = "fold"
    notes = table("notes", "")
    notes.columns[1].justify = "left"
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
    forms = table("NAME+FORM", "its requests in a form")
    forms.columns[1].justify = "left"
    for form, how in FORMS.items():
        forms.add_row(f"+{form}", Text(how.summary))
    return Group(shown, Text(), notes, Text(), forms)


def benchmark_facts(entry: Benchmark, folder: Path | None) -> dict[str, Any]:
    """Everything that the table of benchmarks knows of one."""
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
        shots = "as the task says" if harness.shots is None else str(harness.shots)
        content |= {
            "lm-eval task": f"{harness.task} ({harness.metric})",
            "examples": shots,
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


def side_by_side(answers: dict[str, str], terminal: bool) -> list[RenderableType]:
    """Answers of several models in columns, or as plain lines."""
    if not terminal or len(answers) == 1:
        return [Text(f"{name}> {answer}") for name, answer in answers.items()]
    columns = Table(box=None, expand=True, pad_edge=False)
    for name in answers:
        columns.add_column(name, ratio=1, overflow="fold", header_style="bold cyan")
    columns.add_row(*(Text(answer) for answer in answers.values()))
    return [columns]


def completions(samples: dict[str, list[dict[str, Any]]], count: int = 3) -> list[Text]:
    """The first answers on each prompt set."""
    lines = []
    for name, rows in samples.items():
        for row in rows[:count]:
            verdict = "refused" if row.get("refused") else "answered"
            lines.append(Text(f"[{name}, {verdict}] {row['prompt']}", style="bold"))
            lines.append(Text(f"  {row['completion'].strip()}"))
    return lines


def _direction(content: dict[str, Any]) -> list[RenderableType]:
    place = f"layer {content['layer']}, strength {content['coefficient']:g}"
    if content["position"] is not None:
        place += f", position {content['position']}"
    judged = [c for c in content["scores"] if c["flip_rate"] is not None]
    judged.sort(key=lambda c: (bool(c["rejected"]), -c["flip_rate"], c["harmless_refusals"] or 0.0))
    shown = table(
        "layer", "strength", "harmful refused", "harmless refused", "perplexity", "rejected"
    )
    for c in judged[:TOP_CANDIDATES]:
        shown.add_row(
            str(c["layer"]),
            f"{c['coefficient']:g}",
            f"{c['flip_rate']:.0%}",
            "" if c["harmless_refusals"] is None else f"{c['harmless_refusals']:.0%}",
            "" if c["perplexity_ratio"] is None else f"x{c['perplexity_ratio']:.1f}",
            c["rejected"],
        )
    shown.columns[-1].justify = "left"
    return [
        Text(f"  chosen: {content['method']}, {place}", style="bold"),
        Text(f"  the best of {len(content['scores'])} candidates, as teachers:"),
        shown,
    ]


def _tokens(content: dict[str, Any]) -> list[RenderableType]:
    tokens = content["tokens"]
    shown = table("token", "votes", "mass", "p base", "p teacher")
    for token in tokens[:TOP_TOKENS]:
        shown.add_row(
            Text(repr(token["text"])),
            str(token["votes"]),
            f"{token['mass']:.2f}",
            f"{token['p_base']:.2g}",
            f"{token['p_teacher']:.2g}",
        )
    return [
        Text(
            f"  {len(tokens)} safety tokens hold {content['coverage']:.0%} of the difference"
            f" between teacher and model; the first {min(TOP_TOKENS, len(tokens))}:"
        ),
        shown,
    ]


def _label(name: str, entry: dict[str, Any]) -> str:
    if name in RATES and entry["metric"] == "refusal_rate":
        return RATES[name]
    return f"{name}: {MEASURED.get((entry['metric'], entry['kind']), entry['metric'])}"


def _rate(entry: dict[str, Any] | None) -> str:
    """Share, interval and number of answers; and how many had no verdict."""
    if entry is None:
        return ""
    if entry["value"] is None:
        return "no verdict"
    low, high = entry["ci95"]
    missing = entry.get("no_verdict") or _missing(entry)
    note = f", {missing} without verdict" if missing else ""
    return f"{entry['value']:.1%} ({low:.0%}-{high:.0%}, {entry['n']}{note})"


def _missing(entry: dict[str, Any]) -> int:
    leading = entry.get("judges", {}).get(entry["judge"], {})
    return int(leading.get("no_verdict", 0))


def _by_judge(entries: list[dict[str, Any] | None]) -> list[list[str]]:
    """Rows of a table: what each other judge counts, and on how many answers they differ."""
    found = [entry for entry in entries if entry is not None and len(entry.get("judges", {})) > 1]
    names = dict.fromkeys(judge for entry in found for judge in entry["judges"])
    leading = {entry["judge"] for entry in found}
    rows = [
        [f"  by {name}", *(_rate((entry or {}).get("judges", {}).get(name)) for entry in entries)]
        for name in names
        if {name} != leading
    ]
    if any(entry.get("disagreement") is not None for entry in found):
        shares = [(entry or {}).get("disagreement") for entry in entries]
        cells = ["" if share is None else f"{share:.1%}" for share in shares]
        rows.append(["  answers on which the judges differ", *cells])
    return rows


def _of_all(benchmarks: dict[str, Any], share: str, of: str) -> str:
    """The `share` of what is counted under `of`, over our own prompt sets together."""
    entries = [entry for name, entry in benchmarks.items() if name in RATES and share in entry]
    count = sum(entry[of] for entry in entries)
    return f"{sum(e[share] * e[of] for e in entries) / count:.1%}" if count else ""


def _drift(name: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    value = f"{entry['value']:.1%}" if name == "agreement" else f"{entry['value']:.3f} nats"
    return f"{value} {rounded_words(entry)}".rstrip()
