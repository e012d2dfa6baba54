"""Progress of a command on the screen: bars on a terminal, plain lines anywhere else.

Everything goes to stdout; stderr carries only errors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from safesteer.cli import tables
from safesteer.errors import printable
from safesteer.events import Reporter
from safesteer.report.rows import step_words

PLAIN_WIDTH = 110  # columns, where the output has no width of its own
PLAIN_SECONDS = 2.0  # at least, between two plain lines
_PROMPTS = "safesteer.prompts"  # the logger of prompt files


def make_reporter(quiet: bool) -> CommandReporter:
    """The reporter that fits the output: silent, for a terminal, or for a file or pipe."""
    console = Screen()
    if quiet:
        return CommandReporter(Screen(quiet=True))
    if console.is_terminal:
        return LiveReporter(console)
    return LineReporter(Screen(width=PLAIN_WIDTH, color_system=None))


class Screen(Console):
    """A console that shows every text as it is: `printable`, and no markup of rich in it.

    Models, servers, files and paths bring text that a terminal must not obey.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything comes through here, the cells of tables and the labels of bars too."""
        if isinstance(renderable, str):
            renderable = printable(renderable)
        elif isinstance(renderable, Text):
            shown = printable(renderable.plain)
            if shown != renderable.plain:
                renderable = renderable.copy()
                renderable.plain = shown
        return super().render(renderable, options)


def _line(*parts: tuple[str, str]) -> Text:
    """One line of (text, style), whatever line breaks a text brings."""
    return Text.assemble(*((printable(text, lines=False), style) for text, style in parts))


class CommandReporter(Reporter):
    """Reporter of a command, used in a `with` block. This one prints nothing.

    Attributes:
        console: prints the command's own tables and lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._notes = _NoteHandler(self)

    def __enter__(self) -> CommandReporter:
        logging.getLogger("safesteer").addHandler(self._notes)
        logging.getLogger(_PROMPTS).setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("safesteer").removeHandler(self._notes)
        logging.getLogger(_PROMPTS).setLevel(logging.NOTSET)
        self.finish()

    def finish(self) -> None:
        """Stop the bars, so that tables can follow."""


class _NoteHandler(logging.Handler):
    """Turns warnings of this package's modules, and the line of each prompt file, into notes."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter
        self._loaded: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith(_PROMPTS):  # several stages load the same prompts
            if text in self._loaded:
                return
            self._loaded.add(text)
        self._reporter.note(text)


class PrintingReporter(CommandReporter):
    """Headings, notes and the tables of each stage."""

    def start(self, what: str, where: str = "") -> None:
        where = f" -> {where}" if where else ""
        self.console.print(_line((f"safesteer: {what}{where}", "bold")))

    def stage(self, name: str, detail: str = "") -> None:
        self.finish()
        self.console.print(_line((name, "bold cyan"), (f"  {detail}", "")))

    def skipped(self, name: str) -> None:
        self.finish()
        self.console.print(_line((name, "bold cyan"), ("  already done, skipped", "")))

    def note(self, text: str) -> None:
        self.console.print(_line(("  note: ", "yellow"), (text, "")))

    def result(self, stage: str, content: dict[str, Any]) -> None:
        self.finish()
        for part in tables.stage_result(stage, content):
            self.console.print(part)


class LineReporter(PrintingReporter):
    """Plain lines: one per training step, and at most one per tenth of other work."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._what = ""
        self._tenth = 0
        self._printed = 0.0

    def progress(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._tenth, self._printed = what, 0, time.monotonic()
        tenth = 10 * done // max(total, 1)
        late = time.monotonic() - self._printed >= PLAIN_SECONDS
        if done >= total or (tenth > self._tenth and late):
            self._tenth, self._printed = tenth, time.monotonic()
            self._print(f"  {what} {done}/{total}")

    def training_step(self, metrics: dict[str, Any], total: int) -> None:
        self._print(f"  step {metrics['step']}/{total}  {step_words(metrics)}")

    def _print(self, text: str) -> None:
        self.console.print(_line((text, "")), soft_wrap=True)
        self.console.file.flush()


class LiveReporter(PrintingReporter):
    """Bars with rate and time left; finished bars stay on the screen."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total)

    def training_step(self, metrics: dict[str, Any], total: int) -> None:
        self._show("training steps", metrics["step"], total, step_words(metrics))

    def finish(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}

    def _show(self, what: str, done: int, total: int, facts: str = "") -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("  {task.description:<26}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                _Rate(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self.console,
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(
                printable(what, lines=False), total=total, facts=facts
            )
        task = self._tasks[what]
        if done < self._bars.tasks[self._bars.task_ids.index(task)].completed:
            self._bars.reset(task)  # the same work starts again, on another model
        self._bars.update(task, completed=done, total=total, facts=facts)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")
