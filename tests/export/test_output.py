"""`safesteer export`: names, wrong input, and what it replaces. (pytest tests/export)"""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest

from safesteer.export import merged, output
from safesteer.export.formats import FORMATS
from safesteer.export.output import RECORD


def test_every_format_has_a_writer():
    assert set(output.NAMES) == {*FORMATS, "commands"}


def test_the_difference_is_printed_and_recorded(command, make_run, tmp_path):
    code, out, err = command(make_run(), "--format", "merged", "--output", tmp_path / "out")
    assert code == 0, err
    assert "next-token log-probabilities of 3 prompts differ by at most" in out
    record = json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))
    assert record["format"] == "merged" and 0 <= record["difference"] <= record["bound"] == 0.01
    code, out, err = command(
        make_run(), "--format", "merged", "--output", tmp_path / "o", "--quiet"
    )
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "mergd"], "did you mean 'merged'"),
        (["--format", "merged", "--dtype", "float61"], "did you mean 'float16'"),
        (["--format", "adapter", "--dtype", "float16"], "--dtype"),
        (["--format", "merged"], "--output is missing"),
        (["--format", "gguf", "--output", "folder"], ".gguf"),
        ([], "--format"),
    ],
)
def test_wrong_words(command, make_run, arguments, said):
    code, _, err = command(make_run(trained=False), *arguments)
    assert code == 2 and said in err


@pytest.mark.parametrize("name", ["adapter", "merged", "gguf"])
def test_a_run_that_is_not_trained(command, make_run, tmp_path, name):
    target = tmp_path / "out.gguf"
    code, _, err = command(make_run(trained=False), "--format", name, "--output", target)
    assert code == 2 and "the stage 'train' is not finished" in err
    assert not target.exists()


def test_what_is_no_run(command, tmp_path):
    for path, said in [(tmp_path / "none", "does not exist"), (tmp_path, "not a run of safesteer")]:
        code, _, err = command(path, "--format", "merged", "--output", tmp_path / "out")
        assert code == 2 and said in err


def test_only_an_earlier_export_is_replaced_and_only_when_asked(command, make_run, tmp_path):
    run, target = make_run(), tmp_path / "out"
    arguments = (run, "--format", "adapter", "--output", target)
    assert command(*arguments)[0] == 0
    code, _, err = command(*arguments)
    assert code == 2 and "--force" in err
    (target / "left").write_text("of the earlier one", "utf-8")
    assert command(*arguments, "--force")[0] == 0
    assert not (target / "left").exists()
    for foreign in (run / "adapter", tmp_path / "base"):
        code, _, err = command(run, "--format", "merged", "--output", foreign, "--force")
        assert code == 2 and "no earlier export" in err
    file = tmp_path / "mine.gguf"
    file.write_text("something else", "utf-8")
    code, _, err = command(run, "--format", "gguf", "--output", file, "--force")
    assert code == 2 and file.read_text("utf-8") == "something else"


def test_an_earlier_export_survives_a_failure(command, make_run, tmp_path, monkeypatch):
    run, target = make_run(), tmp_path / "out"
    arguments = (run, "--format", "merged", "--output", target, "--force")
    assert command(*arguments)[0] == 0
    before = sorted(path.name for path in target.iterdir())

    def full(source, target, dtype):
        merged.write(source, target, dtype)
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setitem(FORMATS, "merged", FORMATS["merged"]._replace(write=full))
    code, _, err = command(*arguments)
    assert code == 1 and "the disk is full" in err
    assert sorted(path.name for path in target.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run", "out"}


def test_too_little_space_is_said_before_anything_is_written(
    command, make_run, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    target = tmp_path / "deep" / "out"
    code, _, err = command(make_run(), "--format", "merged", "--output", target)
    assert code == 1 and "the disk is full" in err
    assert not (tmp_path / "deep").exists()


def test_a_place_that_is_no_folder(command, make_run, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    target = tmp_path / "file" / "out"
    code, _, err = command(make_run(), "--format", "adapter", "--output", target)
    assert code == 2 and str(target) in err
