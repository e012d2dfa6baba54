"""Writing report.html and README.md from the files of a run."""

from __future__ import annotations

from safesteer.files import write_text
from safesteer.report.card import render_card
from safesteer.report.findings import read_findings
from safesteer.report.page import render_page
from safesteer.runs.directory import RunDirectory
from safesteer.runs.own_files import CARD, PAGE


def write_report(run: RunDirectory, note: str = "", *, missing_only: bool = False) -> None:
    """Write the page, with `note` on top, and the model card; needs neither model nor lock.

    `missing_only` keeps files that exist, since a person may have edited the card.
    """
    wanted = [name for name in (PAGE, CARD) if not (missing_only and (run.path / name).exists())]
    if not wanted:
        return
    findings = read_findings(run)
    if PAGE in wanted:
        write_text(run.path / PAGE, render_page(findings, note), private=True)
    if CARD in wanted:
        write_text(run.path / CARD, render_card(findings))
