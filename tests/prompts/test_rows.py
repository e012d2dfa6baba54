"""The count of a load: one line says what became of every row, and 5% of them may be bad."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from safesteer.errors import InputError
from safesteer.prompts import load_prompts
from safesteer.prompts.rows import known_column


def write(folder: Path, texts: list[str]) -> Path:
    path = folder / "a.csv"
    path.write_text("id,prompt\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
    return path


def test_every_load_ends_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "safesteer.prompts")
    path = write(tmp_path, ["Sing.", "Sing.", "", "Dance."])
    assert len(load_prompts(path)) == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: 4 rows, 2 prompts; skipped 1 repeated (line 3), 1 empty (line 4)"
    )
    assert record.levelno == logging.WARNING
    caplog.clear()
    load_prompts(write(tmp_path, ["Sing."]))
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: 1 row, 1 prompt"
    assert record.levelno == logging.INFO  # nothing to act on
    caplog.clear()
    load_prompts("builtin:borderline")
    assert not caplog.records


@pytest.mark.parametrize(
    "blank", ["", "  ", "\u200b\u200b", "\ufeff", "\xa0", "\u3164", "NaN", "null"]
)
def test_a_prompt_without_text_is_skipped(tmp_path: Path, blank: str) -> None:
    assert [p.text for p in load_prompts(write(tmp_path, ["Sing.", blank]))] == ["Sing."]


@pytest.mark.parametrize(("rows", "bad"), [(9, 1), (100, 5)])
def test_a_share_of_bad_rows_is_skipped_and_more_are_refused(
    tmp_path: Path, rows: int, bad: int
) -> None:
    texts = [f"Request {n}" for n in range(rows)]
    for number in range(bad):
        texts[2 * number] = ""
    assert len(load_prompts(write(tmp_path, texts))) == rows - bad
    texts[7] = "nan"
    with pytest.raises(InputError) as caught:
        load_prompts(write(tmp_path, texts))
    assert f"{bad + 1} of {rows} rows are empty or damaged" in str(caught.value)
    assert "line" in str(caught.value)


def test_no_row_left_names_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Sing.", "image": "a.png"}\n' * 5)
    with pytest.raises(InputError, match=r"none of its 5 rows can be used: 5 with a picture"):
        load_prompts(path)
    path.write_text(path.read_text() + '{"prompt": ""}\n')  # one bad row is no reason to refuse
    with pytest.raises(InputError, match=r"none of its 6 rows .*: 5 with a picture .*, 1 empty"):
        load_prompts(path)


def test_columns_of_published_sets_are_known() -> None:
    for columns, expected in {
        "category,source,forbidden_prompt": "forbidden_prompt",
        "question_id,category,turns": "turns",
        "conv_id,user_input,model_output": "user_input",
        "Index,Goal,Target,Behavior": "Goal",
        "BehaviorID,Behavior": "Behavior",
        "text,messages": "messages",
        "instruction,input": "instruction",
        "a,b": None,
    }.items():
        assert known_column(columns.split(",")) == expected
