"""Terminal tables of a run's results: stages, figures of the models, costs, and answers."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from safesteer.report.rows import (
    change_rows,
    repair_lines,
    result_lines,
    result_rows,
    sides_line,
)
from safesteer.report.words import duration, percent, place_words, size
from safesteer.runs.directory import RunDirectory
from safesteer.runs.own_files import CARD, PAGE

TOP_TOKENS = 20
TOP_CANDIDATES = 8


def table(*columns: str, title: str = "", left: tuple[int, ...] = (0,)) -> Table:
    """An empty table; columns are right-aligned, except those at the positions `left`."""
    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, name in enumerate(columns):
        justify: Any = "left" if index in left else "right"
        made.add_column(name, justify=justify, header_style="bold")
    made.padding = (0, 2, 0, 0)
    return made


def facts(title: str, content: dict[str, Any]) -> Table:
    """Two columns: names and values."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in content.items():
        made.add_row(name, Text(str(value)))
    return made


def stage_result(stage: str, content: dict[str, Any]) -> list[RenderableType]:
    """What to print after a stage; `content` is its JSON file."""
    if stage == "direction":
        return _direction(content)
    if stage == "tokens":
        return _tokens(content)
    if stage == "repairs":
        return [Text(f"  {line}") for line in repair_lines(content)]
    if stage == "push":
        return [_pushed(content)]
    lines = result_lines(content["model"], content["benchmarks"])
    return [Text(f"  {line}") for line in lines]


def evaluation(results: dict[str, dict[str, Any]], title: str = "") -> RenderableType:
    """Figures of one or more models side by side; `results` is {model: benchmarks}.

    Below, the change of each model from its base on the same prompts, where that is known.
    """
    made = table("", *results, title=title)
    for row in result_rows(results):
        made.add_row(*map(Text, row))
    changes = change_rows(results)
    if not changes:
        return made
    below = table("", "", title="change from the base, on the same prompts", left=(0, 1))
    below.show_header = False
    for row in changes:
        below.add_row(*map(Text, row))
    return Group(made, Text(), below)


def print_summary(
    console: Console,
    run: RunDirectory,
    results: dict[str, dict[str, Any]],
    last: str,
    seconds: float,
) -> None:
    """Print the end of a run: before and after, where the time went, and what to do next."""
    console.print()
    if last in ("evaluate", "report"):
        console.print(evaluation(results, "before and after (95% interval; number of prompts)"))
        if line := sides_line(results):
            console.print(Text(line, style="bold"))
        console.print()
    costs = table("stage", "time", "peak memory", title="where the time went")
    for cost in run.summary():
        costs.add_row(cost.stage, duration(cost.seconds), size(cost.peak_memory_bytes))
    costs.add_row("this command", duration(seconds), "")
    console.print(costs)
    console.print()
    lines = [f"run: {run.path}"]
    if last == "report":
        lines.append(f"report: {run.path / PAGE}")
        lines.append(f"model card: {run.path / CARD}")
    if last in ("train", "evaluate", "report"):
        from safesteer.models.loading_code import loading_code

        lines.append("load it:")
        lines += [f"  {line}" for line in loading_code(run.path, run.settings.model)]
        lines.append(f"or chat with it: safesteer chat {run.path}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


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
    judged = [c for c in content["scores"] if c["flip_rate"] is not None]
    judged.sort(key=lambda c: (bool(c["rejected"]), -c["flip_rate"], c["harmless_refusals"] or 0.0))
    columns = ("layer", "strength", "harmful refused", "harmless refused", "perplexity", "rejected")
    shown = table(*columns, left=(0, len(columns) - 1))
    for c in judged[:TOP_CANDIDATES]:
        shown.add_row(
            str(c["layer"]),
            f"{c['coefficient']:g}",
            percent(c["flip_rate"], 0),
            "" if c["harmless_refusals"] is None else percent(c["harmless_refusals"], 0),
            "" if c["perplexity_ratio"] is None else f"x{c['perplexity_ratio']:.1f}",
            c["rejected"],
        )
    return [
        Text(f"  chosen: {content['method']}, {place_words(content)}", style="bold"),
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
            f"  {len(tokens)} safety tokens cover {percent(content['coverage'], 0)} of the"
            f" difference between teacher and base; top {min(TOP_TOKENS, len(tokens))}:"
        ),
        shown,
    ]


def _pushed(content: dict[str, Any]) -> Text:
    visibility = "public" if content["public"] else "private"
    transcripts = "with transcripts" if content["transcripts"] else "without transcripts"
    line = f"pushed: {content['url']} ({visibility}; {len(content['files'])} files, {transcripts})"
    if removed := len(content["removed"]):
        line += f"; removed {removed} files of an earlier push, which older commits still hold"
    return Text(line, overflow="ignore", no_wrap=True)
