"""A JUnit file of requirements, in which CI shows what failed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from safesteer.errors import printable
from safesteer.files import write_text
from safesteer.report.requirements import Outcome


def write_junit(path: Path, name: str, outcomes: Sequence[Outcome]) -> None:
    """Write a test suite with a case per requirement."""
    failures = sum(not outcome.passed for outcome in outcomes)
    suites = ET.Element("testsuites")
    counts = {"tests": str(len(outcomes)), "failures": str(failures), "errors": "0"}
    suite = ET.SubElement(suites, "testsuite", {"name": _text(name), **counts})
    for outcome in outcomes:
        case = ET.SubElement(suite, "testcase", classname=_text(name), name=_text(outcome.name))
        if outcome.passed:
            ET.SubElement(case, "system-out").text = _text(outcome.words)
        else:
            ET.SubElement(case, "failure", message=_text(outcome.words)).text = _text(str(outcome))
    ET.indent(suites)
    body = ET.tostring(suites, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n')


def _text(text: str) -> str:
    """Without the characters that XML has no form for."""
    return printable(text, lines=False)
