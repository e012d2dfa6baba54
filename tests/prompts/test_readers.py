"""Packed files, tables of the package datasets, and folders."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from safesteer.errors import InputError
from safesteer.prompts import load_prompts
from safesteer.prompts.readers import is_file_source

TEXTS = ["How do bees fly?", "Sing."]


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in load_prompts(path)]


def test_packed_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n".join(TEXTS).encode()))
    assert texts(path) == TEXTS
    assert load_prompts(path)[0].id == "a-0001"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"is not a complete \.gz file"):
        load_prompts(path)


def test_tables_of_the_package_datasets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    caplog.set_level(logging.INFO, "safesteer.prompts")
    made = datasets.Dataset.from_dict({"prompt": TEXTS})
    made.to_parquet(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == TEXTS
    made.save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == TEXTS
    assert texts(next((tmp_path / "one").glob("*.arrow"))) == TEXTS
    other = datasets.Dataset.from_dict({"prompt": ["another"]})
    datasets.DatasetDict(train=made, test=other).save_to_disk(tmp_path / "parts")
    assert texts(tmp_path / "parts") == TEXTS
    assert "split train is read, not test" in caplog.messages[-1]
    assert texts(tmp_path / "parts" / "test") == ["another"]
    datasets.DatasetDict(a=made, b=other).save_to_disk(tmp_path / "unclear")
    with pytest.raises(InputError, match="where SPLIT is one of a, b"):
        load_prompts(tmp_path / "unclear")


def test_folder_with_one_data_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.csv").write_text("x")
    (tmp_path / "train.csv").write_text("prompt\nSing.\n")
    assert texts(tmp_path) == ["Sing."]
    (tmp_path / "test.csv").write_text("prompt\nSing.\n")
    with pytest.raises(InputError, match=r"a folder with 2 data files \(test\.csv, train\.csv\)"):
        load_prompts(tmp_path)


def test_folders_of_the_hub_and_of_text(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "prompts.txt").write_text("Dance.\n")
    assert texts(tmp_path) == ["Dance."]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "Sing."}\n')
    assert texts(tmp_path) == ["Sing."]


def test_pointer_in_place_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="is a pointer of Git LFS"):
        load_prompts(path)


@pytest.mark.parametrize("source", ["a/b.parquet", "a/b.jsonl.gz", "a/b.ndjson", "a/b.txt"])
def test_forms_of_files(source: str) -> None:
    assert is_file_source(source)
    assert not is_file_source("owner/data-set")
