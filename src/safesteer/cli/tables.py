"""The tables that commands print, made from the content of a run's JSON files."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from safesteer.runs import RunDirectory

# Entry of eval/*.json -> what it is called, and which way is better.
RATES = {
    "harmful": "harmful requests refused, higher is better",
    "harmless": "harmless requests refused, lower is better",
    "borderline": "borderline requests refused, lower is better",
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
    rates = "  ".join(
        f"{name} {entry['value']:.1%}"
        for name, entry in content["benchmarks"].items()
        if name in RATES
    )
    return [Text(f"  {content['model']} refuses: {rates}")]


def update_line(metrics: dict[str, Any]) -> str:
    """One training update in a few words."""
    parts = [f"loss {metrics['loss']:.4f}"]
    if metrics.get("refusal_rate") is not None:
        parts.append(f"refused {metrics['refusal_rate']:.0%}")
    if metrics.get("anchor_refusal_rate") is not None:
        parts.append(f"anchors refused {metrics['anchor_refusal_rate']:.0%}")
    if metrics.get("mass_student") is not None:
        parts.append(f"mass {metrics['mass_student']:.2f} of {metrics['mass_teacher']:.2f}")
    return "  ".join(parts)


def evaluation(results: dict[str, dict[str, Any]], title: str = "") -> Table:
    """Rates of one or more models side by side; `results` is {model: benchmarks}."""
    made = table("", *results, title=title)
    for name, label in RATES.items():
        cells = [_rate(benchmarks.get(name)) for benchmarks in results.values()]
        if any(cells):
            made.add_row(label, *cells)
    looping = [_looping(benchmarks) for benchmarks in results.values()]
    if any(looping):
        made.add_row("answers that end in a loop", *looping)
    for name, label in DRIFT.items():
        cells = [_drift(name, benchmarks.get(name)) for benchmarks in results.values()]
        if any(cells):
            made.add_row(label, *cells)
    return made


def print_summary(
    console: Console,
    run: RunDirectory,
    results: dict[str, dict[str, Any]],
    last: str,
    seconds: float,
) -> None:
    """The end of a run: before and after, where the time went, and what to do next."""
    console.print()
    if last == "evaluate":
        console.print(evaluation(results, "before and after (95 % interval, number of prompts)"))
        console.print()
    costs = table("stage", "time", "peak memory", title="where the time went")
    for cost in run.summary():
        costs.add_row(cost.stage, duration(cost.seconds), size(cost.peak_memory_bytes))
    costs.add_row("this command", duration(seconds), "")
    console.print(costs)
    console.print()
    console.print(Text(f"run: {run.path}"), soft_wrap=True)
    if last in ("train", "evaluate"):
        from safesteer.models.usage import loading_code

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
            verdict = "refused" if row["refused"] else "answered"
            lines.append(Text(f"[{name}, {verdict}] {row['prompt']}", style="bold"))
            lines.append(Text(f"  {row['completion'].strip()}"))
    return lines


def duration(seconds: float) -> str:
    """7 s, 2 min 05 s or 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes with the unit that fits."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


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


def _rate(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    low, high = entry["ci95"]
    return f"{entry['value']:.1%} ({low:.0%}-{high:.0%}, {entry['n']})"


def _looping(benchmarks: dict[str, Any]) -> str:
    entries = [entry for name, entry in benchmarks.items() if name in RATES and "looping" in entry]
    count = sum(entry["n"] for entry in entries)
    return f"{sum(e['looping'] * e['n'] for e in entries) / count:.1%}" if count else ""


def _drift(name: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['value']:.1%}" if name == "agreement" else f"{entry['value']:.3f} nats"
