import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safesteer import files
from safesteer.errors import InputError, SafeSteerError

WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, {"new": 1}),
    "jsonl": lambda path: files.write_jsonl(path, [{"new": 1}]),
    "tensors": lambda path: files.save_tensors(path, {"new": torch.zeros(3)}),
}


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"a": 0.1 + 0.2, "b": [1, None, True], "text": "żółw 🐢 \u2028"}
    files.write_json(tmp_path / "deep" / "a.json", value)
    assert files.read_json(tmp_path / "deep" / "a.json") == value
    assert (
        (tmp_path / "deep" / "a.json").read_text("utf-8").startswith('{\n "a": 0.30000000000000004')
    )


def test_json_with_half_a_surrogate_pair_is_escaped(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"prompt": "\ud83d"})
    assert files.read_json(tmp_path / "a.json") == {"prompt": "\ud83d"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(SafeSteerError, match=r"a\.json"):
        files.write_json(path, {"loss": value})
    with pytest.raises(SafeSteerError, match=r"a\.json"):
        files.write_jsonl(path, [{"loss": 1.0}, {"loss": value}])
    assert path.read_text() == "old"


def test_jsonl_has_one_row_per_line(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "a.jsonl", ({"n": n, "text": "a\nb"} for n in range(3)))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]


def test_jsonl_whose_rows_fail_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        files.write_jsonl(path, (1 / n for n in (1, 0)))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    direction = torch.randn(4, 6).T.requires_grad_()
    files.save_tensors(path, {"direction": direction}, {"layer": "3"})
    loaded = files.load_tensors(path)
    assert list(loaded) == ["direction"]
    assert torch.equal(loaded["direction"], direction)
    assert not loaded["direction"].requires_grad


@pytest.mark.parametrize("writer", WRITERS)
def test_files_get_the_usual_permissions(tmp_path: Path, writer: str) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    WRITERS[writer](tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (
            errno.ENOSPC,
            SafeSteerError,
            "the disk is full. Try: free some space and run the same command",
        ),
        (errno.EDQUOT, SafeSteerError, "your disk quota is used up. Try: free some space"),
        (errno.EACCES, InputError, "permission denied. Try: another folder"),
        (errno.EROFS, InputError, "the file system is read-only. Try: another folder"),
        (errno.EIO, SafeSteerError, os.strerror(errno.EIO)),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
    step: str,
    number: int,
    kind: type[SafeSteerError],
    words: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(SafeSteerError) as caught:
        WRITERS[writer](path)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_pipe_is_written_into_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    files.write_jsonl(pipe, [1, 2])
    reader.join(timeout=10)
    assert received == ["1\n2\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "a.json"
    target.write_text("old")
    (tmp_path / "link.json").symlink_to(target)
    files.write_json(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink()
    assert files.read_json(target) == 1


def test_writing_onto_a_folder_or_below_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="folder"):
        files.write_text(tmp_path, "")
    with pytest.raises(InputError, match="file"):
        files.write_text(tmp_path / "file" / "a.json", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b'{"a": [1, 2', "is not valid JSON (line 1, column"),
        (b"not JSON", "is not valid JSON (line 1, column 1)"),
        (b"\x80\x04\x95\xff", "is not a JSON text file"),
        (b"[" * 200_000, "is not a JSON text file"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{path} {words}")


@pytest.mark.parametrize("read", [files.read_json, files.load_tensors, files.sha256_file])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        read(tmp_path / "a.json")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_tensors_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"a\.safetensors is not a complete safetensors file"):
        files.load_tensors(path)
    torch.save({"a": torch.zeros(100)}, path)
    with pytest.raises(InputError, match=r"a\.safetensors is not a complete safetensors file"):
        files.load_tensors(path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "a") == digest


def test_an_output_that_would_cost_something_is_refused(tmp_path: Path) -> None:
    """Before there is anything to write; nothing is left behind."""
    mine, other, empty = tmp_path / "mine", tmp_path / "other", tmp_path / "empty"
    mine.write_text("mine")
    other.write_text("other")
    empty.touch()
    (tmp_path / "linked").symlink_to(mine)
    before = sorted(os.listdir(tmp_path))
    refused = [
        (other, {}, "--html .*other exists. Try: .* or --force"),
        (mine, {"force": True}, "a file that this command reads"),
        (tmp_path / "linked", {"force": True}, "a file that this command reads"),
        (tmp_path, {"force": True}, "is a folder"),
        (mine / "below", {}, "cannot write .*below"),
        (tmp_path / ("n" * 252), {}, "cannot write .*name too long"),
        (Path("/proc/none/answers"), {}, "cannot write /proc"),
    ]
    for path, given, says in refused:
        with pytest.raises(InputError, match=f"(?i){says}"):
            files.check_output(path, "--html", inputs=[mine], **given)
    for path, given in (
        (other, {"force": True}),
        (empty, {}),
        (tmp_path / "new" / "deep", {}),
        (Path("/dev/null"), {}),
    ):
        files.check_output(path, "--html", inputs=[mine], **given)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_large_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_LARGE", 3)
    read: list[object] = []
    monkeypatch.setattr(files, "_sha256", lambda path: str(len(read)) + str(read.append(path)))
    (tmp_path / "a").write_bytes(b"abc")
    first = files.sha256_file(tmp_path / "a")
    assert files.sha256_file(tmp_path / "a") == first and len(read) == 1
    files.write_text(tmp_path / "a", "abd")  # atomic: another inode
    assert files.sha256_file(tmp_path / "a") != first
    os.utime(tmp_path / "a", ns=(1, 1))
    files.sha256_file(tmp_path / "a")
    assert len(read) == 3
    files.sha256_file(tmp_path / "a")
    (tmp_path / "small").write_bytes(b"ab")
    files.sha256_file(tmp_path / "small")
    files.sha256_file(tmp_path / "small")
    assert len(read) == 5


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_text(path, "new", private=True),
        lambda path: files.write_json(path, {}, private=True),
        lambda path: files.write_jsonl(path, [], private=True),
        lambda path: files.append_line(path, b"new"),
    ],
)
def test_private_files_are_their_owners_alone(tmp_path: Path, write) -> None:
    path = tmp_path / "a"
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.write_text("old, and open to all")
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (OSError("9216 requested and 512 written"), True),  # numpy
        # torch.save, and safetensors on a disk and over a quota
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 5"), True),
        (RuntimeError("[enforce fail at inline_container.cc:858] . file write failed"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), True),
        (RuntimeError("expected all tensors to be on the same device"), False),
    ],
)
def test_every_librarys_words_for_a_full_disk(error, full) -> None:
    assert files.is_disk_full(error) is full
    assert ("free some space" in str(files.write_error("x", error))) is full
