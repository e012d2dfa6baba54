"""Files in the forms in which people keep prompts give the same prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer.errors import InputError
from safesteer.prompts import load_prompts

TEXTS = ["How do bees fly?", "Name a color; then another.", "Sing, please."]
ROWS = [{"prompt": text} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
QUOTED = "".join(f'"{text}"\n' for text in TEXTS)

FILES = {
    "text": ("a.txt", "\n".join(TEXTS) + "\n\n"),
    "text with CRLF": ("a.txt", "\r\n".join(TEXTS)),
    "no suffix": ("prompts", "\n".join(TEXTS)),
    "no suffix, JSON lines": ("prompts", LINES),
    "no suffix, JSON": ("prompts", json.dumps(TEXTS)),
    "ndjson": ("a.ndjson", LINES),
    "JSON lines as .json": ("a.json", LINES),
    "a list as .jsonl": ("a.jsonl", json.dumps(ROWS, indent=1)),
    "an object as .jsonl": ("a.jsonl", json.dumps({"data": ROWS}, indent=1)),
    "strings": ("a.jsonl", "".join(json.dumps(text) + "\n" for text in TEXTS)),
    "list under a key": ("a.json", json.dumps({"version": 1, "examples": ROWS})),
    "strings under a key": ("a.json", json.dumps({"version": 1, "prompts": TEXTS})),
    "columns": ("a.json", json.dumps({"prompt": TEXTS, "id": [1, 2, 3]})),
    "pandas, columns": ("a.json", json.dumps({"prompt": dict(enumerate(TEXTS))})),
    "pandas, rows": ("a.json", json.dumps(dict(enumerate(ROWS)))),
    "the hub's viewer": (
        "a.json",
        json.dumps({"features": [{"name": "prompt"}], "rows": [{"row": row} for row in ROWS]}),
    ),
    "OpenAI batch": (
        "a.jsonl",
        "".join(
            json.dumps(
                {"custom_id": text, "body": {"messages": [{"role": "user", "content": text}]}}
            )
            + "\n"
            for text in TEXTS
        ),
    ),
    "Anthropic batch": (
        "a.jsonl",
        "".join(
            json.dumps({"params": {"messages": [{"role": "user", "content": text}]}}) + "\n"
            for text in TEXTS
        ),
    ),
    "documents over several lines": (
        "a.jsonl",
        "".join(json.dumps(row, indent=1) + "\n" for row in ROWS),
    ),
    "CSV as .txt": ("a.txt", "id,prompt\n" + QUOTED.replace('"', '1,"', 1).replace('\n"', '\n1,"')),
    "a header in .txt": ("a.txt", "prompt\n" + "\n".join(TEXTS)),
    "objects under the name of a column": ("a.json", json.dumps({"prompts": ROWS})),
    "a list of conversations": (
        "a.json",
        json.dumps([[{"role": "user", "content": text}] for text in TEXTS]),
    ),
    "a conversation per line": (
        "a.jsonl",
        "".join(json.dumps([{"role": "user", "content": text}]) + "\n" for text in TEXTS),
    ),
    "repeated header": ("a.csv", "prompt,prompt\n" + QUOTED.replace("\n", ",x\n")),
    "YAML": ("a.yaml", "".join(f"- prompt: {json.dumps(text)}\n" for text in TEXTS)),
    "TSV": ("a.tsv", "prompt\tid\n" + "".join(f"{text}\tx\n" for text in TEXTS)),
    "semicolons": ("a.csv", "prompt;id\n" + "".join(f'"{text}";1\n' for text in TEXTS)),
    "semicolons, unknown columns": ("a.csv", "x;Prompt\n" + "".join(f'1;"{t}"\n' for t in TEXTS)),
    "separator of spreadsheets": ("a.csv", "sep=;\nprompt;id\n" + QUOTED.replace("\n", ";1\n")),
    "trailing commas": ("a.csv", "prompt,\n" + QUOTED.replace("\n", ",,\n")),
    "index column": ("a.csv", ",prompt\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(TEXTS))),
    "empty lines first": ("a.csv", "\r\n\r\nprompt\r\n" + QUOTED.replace("\n", "\r\n")),
    "one column without a header": ("a.csv", QUOTED),
}


@pytest.mark.parametrize("form", FILES)
def test_forms(tmp_path: Path, form: str) -> None:
    name, content = FILES[form]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    assert [prompt.text for prompt in load_prompts(path)] == TEXTS


def test_quotes_of_a_tsv_file_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('prompt\tid\n"Hi" is a greeting\t1\nSing.\t2\n')
    assert [prompt.text for prompt in load_prompts(path)] == ['"Hi" is a greeting', "Sing."]


def test_one_row_with_too_many_fields_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,id\nHi, you,1\nSing.,2\n")
    assert [prompt.text for prompt in load_prompts(path)] == ["Sing."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}',
            r"several lists \('train', 'te",
        ),
        ('{"a": 1}', "an object with no list"),
        ('{"a": ["x"], "b": ["y"]}', "several lists"),
    ],
)
def test_objects_without_one_list(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.json", '{"prompt": "Sing.", "tags": ["x"]}', ["Sing."]),
        ("a.json", '{\n "id": 1,\n "prompt": "Sing."\n}\n', ["Sing."]),
        ("a.jsonl", '{\n "prompt": "Sing.",\n "tags": ["x"]\n}\n', ["Sing."]),
        ("a.txt", "{x} is a name. Whose?\nSing.\n", ["{x} is a name. Whose?", "Sing."]),
        ("a.txt", '{"prompt": "Sing."}\n', ["Sing."]),
        ("a.jsonl", '{"prompt": "Sing.", "choices": 4}', ["Sing."]),
    ],
)
def test_a_single_object_is_a_row_and_a_brace_may_start_a_text(
    tmp_path: Path, name: str, content: str, texts: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [prompt.text for prompt in load_prompts(path)] == texts


def test_a_text_read_as_a_table_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_text("prompt,id\nSing.,1\n")
    assert [prompt.text for prompt in load_prompts(path)] == ["Sing."]
    assert "its first line names the columns" in caplog.text


def test_hints_do_not_lead_astray(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Please sing, dance\nand laugh,too\n")
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    assert "did you mean" not in str(caught.value)
    assert "Try: a first line with the names of the columns" in str(caught.value)


def test_damaged_parquet_and_yaml(tmp_path: Path) -> None:
    for name, message in (
        ("a.parquet", "is not a complete .parquet file"),
        ("a.arrow", "is not a complete .arrow file"),
        ("a.yaml", "invalid YAML"),
    ):
        (tmp_path / name).write_text("[x: {")
        with pytest.raises(InputError, match=message):
            load_prompts(tmp_path / name)
