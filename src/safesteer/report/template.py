"""Jinja environment of the report's templates; everything put into HTML is escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from safesteer.errors import printable
from safesteer.models.files import short_name
from safesteer.report import charts
from safesteer.report.words import duration, number, percent, size


def render(template: str, /, **values: Any) -> str:
    """A template of this package, filled in."""
    made = Environment(
        loader=PackageLoader("safesteer", "report"),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": duration,
        "size": size,
        "percent": percent,
        "number": number,
        "tight": tight,
        "escaped": escaped,
        "code": code,
    }
    made.globals |= {
        "style": Markup(package_text("style.css")),
        "legend_mark": charts.legend_mark,
        "legend_line": charts.legend_line,
        "short_name": short_name,
    }
    return made.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else printable(str(value))


def tight(text: str) -> str:
    """Our own words with figures that do not break over lines, and en dashes in ranges."""
    text = re.sub(r"(\d)-(\d)", "\\1\u2013\\2", str(text))
    text = re.sub(r"(\d) (nats|points)", "\\1\u00a0\\2", text)
    return re.sub(r"\b([np]) ([=<]) (\d)", "\\1\u00a0\\2\u00a0\\3", text)


def escaped(text: str) -> str:
    """Text from outside in a line of Markdown or in a cell of a table: no markup, no HTML."""
    text = printable(text, lines=False)
    # An underscore within a word, as in file_name, is an ordinary character.
    return re.sub(r"[\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)", r"\\\g<0>", text)


def code(text: str) -> str:
    """Text from outside as a code span of Markdown."""
    text = printable(text, lines=False)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def package_text(name: str) -> str:
    """The text of a file beside the templates."""
    return (resources.files("safesteer.report") / name).read_text("utf-8")


def security_policy(script: str) -> str:
    """A content security policy: nothing is loaded, and only the script with this hash runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';"
        " base-uri 'none'; form-action 'none'"
    )
