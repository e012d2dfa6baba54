"""Reading prompts: every format gives the same prompts, every fault its own message."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer.errors import InputError
from safesteer.prompts import Prompt, load_prompts
from safesteer.prompts.messages import is_missing

TEXTS = ["How do bees fly?", 'Say "hi", twice.', "Zwei Zeilen,\nund ein Umlaut: ü"]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


# --- What loads ---


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
@pytest.mark.parametrize("name", ["strings.json", "a.json", "a.jsonl", "A.CSV"])
def test_all_formats_load(tmp_path: Path, name: str, mark: bytes) -> None:
    rows = [{"prompt": text} for text in TEXTS]
    content = {
        "strings.json": json.dumps(TEXTS, ensure_ascii=False),
        "a.json": json.dumps(rows, indent=1),
        "a.jsonl": "\r\n\r\n".join(json.dumps(row) for row in rows),
        "A.CSV": as_csv(rows),
    }[name]
    path = write(tmp_path, name, mark + content.encode())
    prompts = load_prompts(path)
    assert texts(prompts) == TEXTS
    assert prompts == load_prompts(str(path))
    assert [prompt.id for prompt in prompts] == [f"{path.stem.lower()}-000{n}" for n in (1, 2, 3)]


def test_optional_columns(tmp_path: Path) -> None:
    row = {"ID": 7, "Instruction": "Sing.", "category": "music", "split": "test", "extra": None}
    path = write(tmp_path, "a.json", json.dumps([row]))
    assert load_prompts(path) == [
        Prompt("7", ({"role": "user", "content": "Sing."},), category="music", split="test")
    ]


@pytest.mark.parametrize(
    "column", ["prompt", "instruction", "question", "goal", "behavior", "Goal", "Behavior"]
)
def test_prompt_columns_are_found_by_name(tmp_path: Path, column: str) -> None:
    path = write(tmp_path, "a.csv", f"target,{column}\nsure,Sing.\n")
    assert texts(load_prompts(path)) == ["Sing."]


def test_prompt_goes_before_the_other_names_and_a_named_column_before_all(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "goal,note,Prompt\nsecond,third,first\n")
    assert texts(load_prompts(path)) == ["first"]
    assert texts(load_prompts(path, column="note")) == ["third"]


def test_conversations_lose_their_trailing_answers(tmp_path: Path) -> None:
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Sing."},
    ]
    answered = [*asked, {"role": "assistant", "content": "La", "name": None}]
    for column in ("messages", "Conversation", "prompt"):
        path = write(tmp_path, "a.jsonl", as_json_lines([{column: answered}]))
        (prompt,) = load_prompts(path)
        assert prompt.messages == tuple(asked)
        assert prompt.text == "Sing."


def test_duplicates_are_dropped_and_ids_made_unique(tmp_path: Path) -> None:
    rows = [("a", "One"), ("a", "Two"), ("b", "One"), ("a", "Three")]
    path = write(tmp_path, "a.jsonl", as_json_lines([{"id": i, "prompt": p} for i, p in rows]))
    prompts = load_prompts(path)
    assert texts(prompts) == ["One", "Two", "Three"]
    assert [prompt.id for prompt in prompts] == ["a", "a-2", "a-4"]
    assert texts(load_prompts(path, limit=2)) == ["One", "Two"]


def test_builtin_sets_ignore_the_column() -> None:
    prompts = load_prompts("builtin:borderline", column="goal", limit=3)
    assert [prompt.id for prompt in prompts] == [f"borderline-00{n}" for n in (1, 2, 3)]
    assert all(prompt.category and prompt.split == "train" for prompt in prompts)


PROMPT_TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: not is_missing(text)
)


@settings(deadline=None)  # a shared machine stalls now and then
@given(st.lists(PROMPT_TEXTS, min_size=1, unique=True))
def test_what_is_written_is_read_again(tmp_path_factory: Any, written: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": text} for text in written]
    files = {
        "a.json": json.dumps(written, ensure_ascii=False),
        "b.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }
    if not any("\0" in text for text in written):  # Python 3.10 cannot read these from CSV
        files["c.csv"] = as_csv(rows)
    for name, content in files.items():
        assert texts(load_prompts(write(folder, name, content))) == written


# --- What does not ---

FAULTS: dict[str, tuple[str, str | bytes, str]] = {
    "empty file": ("a.jsonl", "", "holds no prompts"),
    "empty json": ("a.json", " \n", "holds no prompts"),
    "empty list": ("a.json", "[]", "holds no prompts"),
    "header only": ("a.csv", "prompt\n", "holds no prompts"),
    "no column": (
        "a.csv",
        "promt,b\nx,y\n",
        "has no column 'prompt' (did you mean 'promt'?); it has 'promt', 'b'",
    ),
    "no columns at all": ("a.json", "[{}]", "it has no columns"),
    "number as row": ("a.jsonl", "5\n", "line 1: must be an object, not a number"),
    "list as row": ("a.json", "[[]]", "row 1: must be an object, not a list"),
    "null as row": ("a.json", "[null]", "row 1: must be an object, not null"),
    "object as file": ("a.json", '{"name": "a"}', "must hold a list of prompts or objects"),
    "truncated json": ("a.json", '["a",\n"b', "line 2: invalid JSON (Unterminated string"),
    "truncated lines": (
        "a.jsonl",
        '{"prompt": "a"}\n\n{"pro\n{"pro\n',
        "2 of 3 rows are empty or damaged, more than the 5% that are skipped: lines 3, 4: invalid",
    ),
    "nested too deeply": ("a.json", "[" * 200_000, "this JSON cannot be parsed"),
    "open quote in csv": ("a.csv", 'prompt\n"a\n', "line 2: invalid CSV"),
    "comma without quotes": (
        "a.csv",
        "prompt\nHi, you\n",
        "line 2: 2 fields, but the header has 1",
    ),
    "empty prompt": ("a.csv", "prompt,id\n ,2\n", "line 2: the prompt in 'prompt' is empty"),
    "missing prompt": (
        "a.json",
        '["a", {"id": 1}, {"id": 2}]',
        "2 of 3 rows are empty or damaged, more than the 5% that are skipped: rows 2, 3: the"
        " prompt in 'prompt' is missing. Try: fill it in, or delete the row",
    ),
    "number as prompt": ("a.jsonl", '{"prompt": 3}', "line 1: the prompt in 'prompt' is not a str"),
    "half a character": ("a.json", '["a\\ud83d"]', "row 1: the prompt in 'prompt' contains half"),
    "unknown suffix": ("a.xlsx", "x", "has the extension '.xlsx', and its format is not"),
    "string as conversation": ("a.csv", "messages\nHi\n", "must be a list of {role, content}"),
    "answer only": (
        "a.json",
        '[{"messages": [{"role": "assistant", "content": "a"}]}]',
        "row 1: the conversation in 'messages' does not end with a request of the user",
    ),
    "message without content": (
        "a.json",
        '[{"messages": [{"role": "user"}]}]',
        "row 1: a message in 'messages' is not an object with the strings role and content",
    ),
    "unknown role": (
        "a.json",
        '[{"messages": [{"role": "usr", "content": "a"}]}]',
        "row 1: unknown role 'usr' in 'messages' (did you mean 'user'?)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_named_with_place_and_remedy(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_file_names_its_neighbor(tmp_path: Path) -> None:
    write(tmp_path, "harmful.jsonl", "")
    with pytest.raises(InputError, match=r"does not exist \(did you mean 'harmful.jsonl'\?\)"):
        load_prompts(tmp_path / "harmfull.jsonl")
    with pytest.raises(InputError, match=r"does not exist\. Try: check the path"):
        load_prompts("no-such-folder/prompts.txt")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder with no data file\. Try: a \.json"):
        load_prompts(str(tmp_path))


def test_named_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt,behaviour\na,b\n")
    with pytest.raises(InputError, match=r"no column 'behavior' \(did you mean 'behaviour'\?\)"):
        load_prompts(path, column="behavior")


@pytest.mark.parametrize(
    "source", ["", "no-such-prompts", "https://example.org/a", "a\0b", "x" * 5000]
)
def test_source_that_is_nothing(source: str) -> None:
    with pytest.raises(InputError, match=r"is not a prompt source\. Try"):
        load_prompts(source)


@pytest.mark.parametrize("source", ["builtin", "builtin:harmfull"])
def test_unknown_builtin_set(source: str) -> None:
    with pytest.raises(InputError, match="Try: builtin:harmful, builtin:harmless, builtin:bo"):
        load_prompts(source)


def test_limit_below_one() -> None:
    with pytest.raises(InputError, match=r"limit is 0\. Try: 1 or more"):
        load_prompts("builtin:harmful", limit=0)


# --- The hub, without a network ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A stand-in for the package datasets; returns the list of calls."""
    calls: list[tuple[str, str | None]] = []

    def load_dataset(name: str, config: str | None) -> dict[str, list[dict[str, str]]]:
        calls.append((name, config))
        if name == "no/where":
            raise ConnectionError("Couldn't reach 'no/where' on the Hub.\nSecond line")
        if name == "only/test":
            return {"test": [{"Goal": "only"}]}
        return {"test": [{"Goal": "tested"}], "val": [{"Goal": "valued"}, {"Goal": ""}]}

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_data_sets(hub: list[tuple[str, str | None]]) -> None:
    assert texts(load_prompts("only/test")) == ["only"]
    (prompt,) = load_prompts("walled-ai/AdvBench.v2:default:test")
    assert (prompt.id, prompt.text) == ("advbench-0001", "tested")
    load_prompts("a/b::test")
    assert hub == [("only/test", None), ("walled-ai/AdvBench.v2", "default"), ("a/b", None)]


@pytest.mark.usefixtures("hub")
def test_hub_faults() -> None:
    with pytest.raises(InputError, match=r"loaded as a hub data set \(Couldn't reach 'no/where'"):
        load_prompts("no/where")
    with pytest.raises(
        InputError, match=r"no split 'train'\. Try: a/b::SPLIT, where SPLIT is one of test, val"
    ):
        load_prompts("a/b")
    assert texts(load_prompts("a/b::val")) == ["valued"]


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        load_prompts("a/b")


def test_duplicates_are_kept_only_where_asked(tmp_path):
    file = tmp_path / "twice.json"
    file.write_text('["a", "b", "a"]')
    assert [p.text for p in load_prompts(file)] == ["a", "b"]
    assert [p.text for p in load_prompts(file, keep_duplicates=True)] == ["a", "b", "a"]
