"""Rules of the house, checked on the source: imports, sizes, layout, words. (pytest this file)

docs/architecture.md gives the reasons. Every failure lists all places that break the rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from safesteer.config.settings import Section, Settings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "safesteer"
TESTS = ROOT / "tests"

# From the ground up: a module imports from its own line and from those above it.
LAYERS = (
    ("errors", "files", "events", "distributed"),
    ("config",),
    ("prompts",),
    ("models",),
    ("judges",),
    ("direction",),
    ("teacher",),
    ("safety_tokens",),
    ("distill",),
    ("inference",),
    ("evaluate",),
    ("runs",),
    ("report",),
    ("export",),
    ("memory",),
    ("pipeline",),
    ("cli",),
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 7
NOT_COUNTED = {"self", "cls", "settings", "args"}
MAX_LOOSE_MODULES = 8
MAX_MAIN_SETTINGS = 60

# Tests of more than one module; all others are named after what they test.
TESTS_THAT_SPAN = {
    "test_house.py": "the whole source",
    "test_docs.py": "the documentation",
    "test_bench.py": "the scripts of bench and research",
    "test_hostile.py": "the hostile cases of bench",
    "examples/test_examples.py": "the examples folder",
    "cli/test_devices.py": "the command in several processes",
    "cli/test_push.py": "the command, the push and a stand-in of the hub",
    "models/test_adapter_base.py": "a run whose base is an adapter",
    "models/test_architectures.py": "a run of every architecture",
    "models/test_seeing.py": "loading, training and saving of models with a vision tower",
    "pipeline/test_thinking_run.py": "a run of a model that thinks",
    "runs/test_processes.py": "lock and directory in several processes",
}

QUESTION_WORDS = ("What", "Which", "Where", "Who", "How", "When")
DENIED = (
    "what would do",
    "goes on with",
    "broken off",
    "knows nothing of",
    "made whole",
    "learned by heart",
    "straight line",
    "whole windows",
    "begun answers",
    "told apart",
    "in few bits",
    "touched once",
)


@cache
def modules() -> dict[str, ast.Module]:
    """The parsed source: {dotted name without `safesteer.`: tree}; a package is its __init__."""
    return {
        str(path.relative_to(SOURCE).with_suffix(""))
        .replace("/", ".")
        .removesuffix("__init__")
        .removesuffix("."): ast.parse(path.read_text("utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere, in functions too.

    The package's own __init__ and __main__ stand above all layers, so that they are not in it.
    """
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        found[name] = targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    known = whole.removeprefix("safesteer.") in modules()
                    targets.add(whole if known else str(node.module))
        own = {t.removeprefix("safesteer.") for t in targets if t.startswith("safesteer.")}
        found[name] = own - {name}
    return {name: found[name] for name in found if name not in ("", "__main__")}


def layer(module: str) -> int:
    """The number of the layer that a module belongs to."""
    top = module.partition(".")[0]
    return next(number for number, names in enumerate(LAYERS) if top in names)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method: the module, and the definition."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The parameters that count."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in NOT_COUNTED]


def settings_keys(section: type[Section], path: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its description; not the sections themselves."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings_keys(kind, f"{path}{name}.")
        else:
            yield path + name, field.description or ""


def prose(path: Path) -> str:
    """The text of a file on one line, without comment signs and joints of strings."""
    text = path.read_text("utf-8")
    text = re.sub(r'"\n\s*[fr]?"', "", text)
    return re.sub(r"\s+(#:?\s+)?", " ", text)


def forbid(violations: Iterable[str]) -> None:
    """Fail with all violations, one a line."""
    found = sorted(violations)
    assert not found, "\n".join([f"{len(found)} broken:", *found])


# Rooms that are being rewritten still break these; the marks go with the last violation.


def test_every_module_has_a_layer():
    tops = {name.partition(".")[0] for name in imports()}
    assert tops == {name for names in LAYERS for name in names}


def test_imports_run_one_way():
    forbid(
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if layer(target) > layer(module)
    )


def test_imports_have_no_circle():
    """TYPE_CHECKING and function-level imports included."""
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(reversed(circle.args[1])))


def test_files_are_short():
    lines = {path: path.read_text("utf-8").count("\n") for path in SOURCE.rglob("*.py")}
    forbid(f"{p.relative_to(SOURCE)}: {n} lines" for p, n in lines.items() if n > MAX_FILE_LINES)


def test_functions_are_short():
    forbid(
        f"{module}.{f.name}: {f.end_lineno - f.lineno + 1} lines"
        for module, f in functions()
        if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES
    )


def test_signatures_are_short():
    """A command has a parameter for each of its options, as typer wants it, and is exempt."""
    forbid(
        f"{module}.{f.name}: {len(parameters(f))} parameters"
        for module, f in functions()
        if len(parameters(f)) > MAX_PARAMETERS
        and not (module.startswith("cli.") and _is_command(f))
    )


def _is_command(function: ast.FunctionDef) -> bool:
    return any(word in ast.unparse(function.args) for word in ("GivenSettings", "typer.Option"))


def test_few_modules_lie_loose_at_the_top():
    loose = sorted(path.name for path in SOURCE.glob("*.py"))
    assert len(loose) <= MAX_LOOSE_MODULES, loose


def test_tests_mirror_the_tree():
    strangers = []
    for path in sorted(TESTS.rglob("test_*.py")):
        name = str(path.relative_to(TESTS))
        tested = (SOURCE / name).with_name(path.stem.removeprefix("test_"))
        exists = tested.with_suffix(".py").is_file() or tested.is_dir()
        if not exists and name not in TESTS_THAT_SPAN:
            strangers.append(name)
    forbid(strangers)
    assert all((TESTS / name).is_file() for name in TESTS_THAT_SPAN)


def test_only_the_pipeline_opens_a_run_for_writing():
    forbid(
        f"{module}, line {node.lineno}"
        for module, tree in modules().items()
        if not module.startswith("pipeline")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "RunDirectory.open"
    )


def test_every_setting_is_described_in_a_sentence():
    forbid(key for key, text in settings_keys(Settings) if not text.endswith("."))


def test_few_settings_are_not_advanced():
    main = [key for key, _ in settings_keys(Settings) if ".advanced." not in key]
    assert len(main) <= MAX_MAIN_SETTINGS, f"{len(main)}: {main}"


def test_every_module_says_what_it_is():
    """In a noun phrase or an imperative."""
    titles = {name: (ast.get_docstring(tree) or "") for name, tree in modules().items()}
    forbid(
        f"{name or '__init__'}: {title.partition(chr(10))[0]}"
        for name, title in titles.items()
        if not title or title.split()[0] in QUESTION_WORDS
    )


def test_every_error_says_what_to_try():
    """Where a message ends with another one, that one does."""

    def advises(message: ast.expr) -> bool:
        if isinstance(message, ast.Constant):
            return "Try" in str(message.value)
        if isinstance(message, ast.JoinedStr):
            return "Try" in ast.unparse(message) or not isinstance(message.values[-1], ast.Constant)
        return True

    forbid(
        f"{module}, line {node.lineno}: {ast.unparse(node.args[0])[:80]}"
        for module, tree in modules().items()
        if module != "distill.checkpoints"  # `prepare_resume` adds what to try
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("InputError", "SafeSteerError")
        and not advises(node.args[0])
    )


def test_no_denied_words():
    files = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml")),
    ]
    forbid(
        f"{path.relative_to(ROOT)}: {words}"
        for path in files
        for words in DENIED
        if words in prose(path).lower()
    )
