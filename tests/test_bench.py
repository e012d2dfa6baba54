"""Scripts of bench/ and research/: they import, explain themselves, and print stored results."""

from __future__ import annotations

import re
import runpy
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bench").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]
PACKAGES = {
    "bench.speed": [
        *("direction", "lengths", "loss", "update", "profile", "compiled", "scaling"),
        *("processes", "hashes", "loading"),
    ],
    "bench.memory": ["prediction", "gpus"],
    "bench.evidence": ["benchmarks", "unseen", "solutions", "probe", "gate"],
}
SINGLE = ["bench.hostile", "bench.judge_accuracy", "bench.methods"]
STUDIES = [f"research.{path.stem}" for path in (ROOT / "research").glob("[a-z]*.py")]
COMMANDS = [
    *([package, script] for package, scripts in PACKAGES.items() for script in scripts),
    *([name] for name in (*SINGLE, *STUDIES)),
]
NEEDS_SKLEARN = ("probe", "gate")  # which comes with the extra `eval`
RESULTS = ("methods", "methods-60", "methods-forward")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    """As if started in the root of the repository; libraries are left as talkative as they are."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("bench.command_line.silence_libraries", lambda debug: None)


def start(monkeypatch, module: str, *arguments: str) -> None:
    """What `python -m MODULE ARGUMENTS` does."""
    monkeypatch.setattr("sys.argv", [module, *arguments])
    if (ROOT / module.replace(".", "/")).is_dir():
        runpy.run_module(module, run_name="__main__")
    else:
        import_module("bench.command_line").run_script(module)


def help_of(monkeypatch, capsys, words: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        start(monkeypatch, *words, "--help")
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_script_explains_itself(words, monkeypatch, capsys):
    if words[-1] in NEEDS_SKLEARN:
        pytest.importorskip("sklearn")
    text = help_of(monkeypatch, capsys, words)
    assert f"python -m {' '.join(words)}" in text  # the command line
    assert "rint" in text.partition("options:")[0]  # what it prints


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_lists_its_scripts(package, monkeypatch, capsys):
    text = help_of(monkeypatch, capsys, [package])
    found = {path.stem for path in (ROOT / package.replace(".", "/")).glob("[a-z]*.py")}
    assert found == set(PACKAGES[package])
    assert all(re.search(rf"^ +{script}\b", text, re.MULTILINE) for script in found)


def test_commands_on_pages_exist(monkeypatch, capsys):
    known: dict[str, str] = {}
    methods = import_module("bench.methods.table").METHODS.keys()
    for page in PAGES:
        text = " ".join(page.read_text("utf-8").replace("\\\n", " ").split())
        for module, rest in re.findall(r"python -m ((?:bench|research)[\w.]*)([^`|]*)", text):
            words = [module, *(rest.split()[:1] if module in PACKAGES else [])]
            assert words in COMMANDS, f"{page.name}: {words}"
            command = " ".join(words)
            if words[-1] in NEEDS_SKLEARN and not find_spec("sklearn"):
                continue
            if command not in known:
                known[command] = help_of(monkeypatch, capsys, words)
            given = rest.partition(" python ")[0].partition(" safesteer ")[0]
            for option in re.findall(r"(?<!\S)--[a-z-]+", given):
                assert option in known[command], f"{page.name}: {command} {option}"
            for listed in re.findall(r"--methods ([a-z]\S+)", given):
                assert set(listed.split(",")) <= methods, f"{page.name}: {listed}"
    assert len(known) > 12


@pytest.mark.parametrize("name", RESULTS)
def test_tables_of_stored_results(name, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "bench" / "results" / name, tmp_path / name)
    start(monkeypatch, "bench.methods", str(tmp_path / name), "--table")
    head, _, *rows = capsys.readouterr().out.splitlines()
    stored = {path.name.partition("-seed")[0] for path in (tmp_path / name).glob("*.json")}
    assert {row.split("|")[1].strip(" *") for row in rows} == stored
    assert all(row.count("|") == head.count("|") for row in rows)
    assert (tmp_path / name / "pareto.html").is_file()


def test_stored_methods_are_in_the_table():
    table = import_module("bench.methods.table")
    for path in (ROOT / "bench" / "results").glob("methods*/*.json"):
        assert path.name.partition("-seed")[0] in table.METHODS
    for method in table.METHODS.values():  # every change is a setting that exists
        table.settings_of("smollm2-135m", [], method, seed=0)
