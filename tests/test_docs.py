"""What the documentation shows exists: commands, options, settings, messages. (pytest this file)"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from test_house import LAYERS

from safesteer.cli.main import app
from safesteer.config.load import _all_keys, recipe_names
from safesteer.config.rules import RULES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "safesteer"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
KEYS = set(_all_keys())
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}


def shown_commands(text: str) -> list[str]:
    """Command lines in code blocks, indented or fenced, and in backquotes."""
    lines = re.findall(r"^(?: {4,})?(safesteer (?:.*\\\n)*.*)$", text, re.MULTILINE)
    return lines + re.findall(r"`(safesteer [^`]+)`", " ".join(text.split()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page):
    top = {option for p in typer.main.get_command(app).params for option in p.opts}
    for line in shown_commands(page.read_text("utf-8")):
        words = shlex.split(line.replace("\\\n", " "), comments=True)[1:]
        words = [word.strip("[]") for word in words]
        if words[0].startswith("--"):
            assert words[0] in top, line
            continue
        assert words[0].rstrip(",") in COMMANDS, line
        if words[0].endswith(",") or "|" in line.partition("#")[0]:
            continue  # a list of commands, or of an option's values
        known = {o for p in COMMANDS[words[0]].params for o in (*p.opts, *p.secondary_opts)}
        for before, word in pairwise(words):
            if word.startswith("-"):
                assert word.partition("=")[0] in known, line
            if before == "--set":
                # Any name may follow.
                free = ("evaluate.advanced.sources.", "model.template_kwargs.")
                assert word.partition("=")[0] in KEYS or word.startswith(free), line
            if before == "--config" and word.islower() and "." not in word:
                assert word in recipe_names(), line


# The log of experiments keeps the names that settings had at the time.
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "experiments.md"], ids=lambda page: page.name
)
def test_every_setting_exists(page):
    for name in re.findall(r"`([a-z]+\.[a-z_.]+)(?:[=:][^`]*)?`", page.read_text("utf-8")):
        if name.partition(".")[0] in SECTIONS and not name.endswith((".py", ".json", ".jsonl")):
            assert any(key == name or key.startswith(f"{name}.") for key in KEYS), name


def test_the_messages_of_the_troubleshooting_page_are_the_programs():
    said = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                said.append("".join(part if isinstance(part, str) else "\0" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        pattern = ".*?".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, one, re.DOTALL) for one in said), message


def test_the_navigation_has_every_page():
    named = re.findall(r": ([a-z-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_exist(page):
    """Paths in backquotes; those of a run, such as `eval/samples/`, are not checked."""
    text = page.read_text("utf-8")
    for name in re.findall(r"`((?:bench|examples|research|src|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"python ((?:bench|examples)/[\w/]+\.py)", text):
        assert (ROOT / name).is_file(), name
    for package, script in re.findall(r"python -m bench\.(\w+)(?: ([a-z_]+)\b)?", text):
        folder = ROOT / "bench" / package
        assert (folder / "__main__.py").is_file() or folder.with_suffix(".py").is_file(), package
        assert script in ("", "bench") or (folder / f"{script}.py").is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_formulas_render(page):
    """Markdown makes a paragraph of a list without a blank line before it, and of indented code
    within a list; so lists follow a blank line, and code is fenced."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    item = re.compile(r"(- |\* |\d+\. )")
    for block in re.split(r"\n\s*\n", text):
        first, *rest = block.strip("\n").split("\n")
        assert not first.startswith("    "), f"indented code: {first}"
        if not item.match(first):
            assert not any(item.match(line) for line in rest), f"a list in a paragraph: {block}"
        assert not any(re.match(r" {1,3}[-*] ", line) for line in rest), f"indent by 4: {block}"


def test_the_code_of_the_results_page_prints_its_table():
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for seed, number, points, ends in re.findall(
        r"\| seed (\d) \| (\d+), .*?\| \+([\d.]+) points \((.*?),", text
    ):
        assert f"seed {seed}: 7 -> {number} of 228" in printed
        assert re.search(rf"\+{points} points \(95 ?% {ends},", printed), printed


def source_tree() -> str:
    """The source as a tree: every folder and module with the first sentence of its docstring."""
    order = [name for names in LAYERS for name in names]  # loose modules and folders alike

    def place(path: Path) -> tuple[int, tuple[str, ...], str]:
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        return order.index(top) if top in order else -1, path.parent.parts, path.name

    lines = ["src/safesteer/"]
    for path in sorted(SOURCE.rglob("*.py"), key=place):
        folder = path.parent.relative_to(SOURCE)
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        says = " ".join(re.split(r"\n\n|(?<=[.;]) (?=[A-Z])", text)[0].split()).rstrip(".;")
        if path.name == "__init__.py":
            name, indent = f"{folder.name}/", "  " * len(folder.parts)
        else:
            name, indent = path.name, "  " * (len(folder.parts) + 1)
        if name != "/":
            lines.append(f"{indent}{name}".ljust(26) + f" {says}")
    return "\n".join(lines)


def test_the_tree_of_the_architecture_is_the_source():
    """SAFESTEER_WRITE_DOCS=1 writes it."""
    page = ROOT / "docs" / "architecture.md"
    before, _, rest = page.read_text("utf-8").partition("<!-- tree -->\n```\n")
    tree, _, after = rest.partition("\n```\n")
    if os.environ.get("SAFESTEER_WRITE_DOCS"):
        page.write_text(f"{before}<!-- tree -->\n```\n{source_tree()}\n```\n{after}", "utf-8")
    else:
        assert tree == source_tree()


def test_the_table_of_rules_is_the_programs():
    """SAFESTEER_WRITE_DOCS=1 writes it."""
    rows = ["| refused | why |", "|---|---|"]
    for rule in RULES:
        refused = re.sub(r"'?\{[^}]+\}'?", "...", rule.message.partition(". Try:")[0])
        refused = re.sub(r"\b[a-z]+\.[a-z_.]+[a-z](?: = '?[\w.-]+'?)?", r"`\g<0>`", refused)
        rows.append(f"| {refused} | {rule.reason.rstrip('.')} |")
    table = "\n".join(rows) + "\n"
    page = ROOT / "docs" / "settings.md"
    before, table_on_page = page.read_text("utf-8").split("<!-- rules -->\n")
    if os.environ.get("SAFESTEER_WRITE_DOCS"):
        page.write_text(f"{before}<!-- rules -->\n{table}", "utf-8")
    else:
        assert table_on_page == table
