"""The screen of a command. (pytest tests/cli/test_reporter.py)"""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.text import Text

from safesteer.cli.reporter import LineReporter, LiveReporter, Screen
from safesteer.cli.tables import facts, side_by_side, table

HOSTILE = "a\x1b]0;title\x07 b\x9b2J \u202egnp [red]c[/red] :warning: \x1b[8mhidden\nnote: fine"


@pytest.mark.parametrize(("reporter", "terminal"), [(LineReporter, False), (LiveReporter, True)])
def test_nothing_from_outside_is_obeyed(reporter, terminal):
    screen = Screen(file=io.StringIO(), width=400, force_terminal=terminal, color_system=None)
    shown = reporter(screen)
    shown.start(HOSTILE, HOSTILE)
    shown.stage("model", HOSTILE)
    shown.note(HOSTILE)
    shown.progress(HOSTILE, 1, 2)
    shown.progress(HOSTILE, 2, 2)
    shown.finish()
    lines = screen.file.getvalue()
    assert r"\nnote: fine" in lines and "\nnote: fine" not in lines
    screen.print(HOSTILE)
    screen.print(Text(HOSTILE, style="bold"))
    screen.print(facts(HOSTILE, {HOSTILE: HOSTILE}))
    cells = table("", HOSTILE, title=HOSTILE)
    cells.add_row(HOSTILE, Text(HOSTILE))
    screen.print(cells)
    for part in side_by_side({"base": HOSTILE, "aligned": HOSTILE}, terminal=True):
        screen.print(part)
    written = screen.file.getvalue()
    # What rich itself writes to a terminal: cursor movements for the bars.
    own = re.sub(r"\x1b\[(\?25[lh]|1A|2K)|\r", "", written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", own)
    for said in (r"\x1b]0;title", r"\x9b2J", r"\u202egnp", "[red]c[/red]", ":warning:"):
        assert said in own, said


def test_an_error_with_control_characters_is_spelled_out(safesteer):
    outcome = safesteer("run", "--config", "\x1b[2J.yaml")
    assert outcome.code == 2
    assert r"\x1b[2J.yaml" in outcome.error and "\x1b" not in outcome.err


def test_the_line_of_a_prompt_file_is_shown_once():
    screen = Screen(file=io.StringIO(), width=200, color_system=None)
    with LineReporter(screen):
        for _ in range(2):  # as several stages load the same prompts
            logging.getLogger("safesteer.prompts.load").info("a.csv: 8 rows, 8 prompts")
            logging.getLogger("safesteer.models.oom").warning("smaller batches")
    logging.getLogger("safesteer.prompts.load").info("not seen")
    written = screen.file.getvalue()
    assert written.count("a.csv: 8 rows") == 1 and written.count("smaller batches") == 2
    assert "not seen" not in written
