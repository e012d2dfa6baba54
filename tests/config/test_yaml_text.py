"""Config files as nobody means them: one line says what is wrong, and nothing passes in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safesteer.config.load import load_settings
from safesteer.errors import InputError

LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG: dict[str, tuple[bytes, str]] = {
    "billions of laughs": (LAUGHS.encode(), "line 2: an alias"),
    "an alias of itself": (b"train: &t\n  lora: *t\n", "line 2: an alias"),
    "a thousand levels": (b"[" * 1000 + b"]" * 1000, "more than 20 levels"),
    "a thousand blocks": (b"".join(b" " * n + b"a:\n" for n in range(1000)), "more than 20 levels"),
    "a key twice": (b"seed: 1\nmodel: {id: a}\nseed: 2\n", "line 3: the key 'seed' appears twice"),
    "a key twice below": (b"train:\n  lora: {r: 8, r: 16}\n", "line 2: the key 'r' appears twice"),
    "a list": (b"- model\n- train\n", "it holds a list"),
    "a word": (b"model", "it holds a single value"),
    "no": (b"no", "it holds a single value"),
    "nothing": (b"", "it is empty"),
    "a comment": (b"# later\n", "it is empty"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "not valid YAML"),
    "a tab": (b"model:\n\tid: a\n", "line 2"),
    "an open quote": (b'model:\n  id: "a\n', "not valid YAML"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "not UTF-8"),
    "Latin-1": ("model: {id: żółw}".encode("iso-8859-2"), "not UTF-8"),
    "control characters": (b"seed: 1\x00", r"the character U\+0000"),
    "an object": (b"seed: !!python/object/apply:os.getpid []", "could not determine a constructor"),
    "an endless number": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "a day that is none": (b"model: {revision: 2020-99-99}", "not valid YAML"),
    "a list as a key": (b"? [a, b]\n: 1\n", "not valid YAML"),
    "a number as a key": (b"1: 2\n", "the key 1 is not a word"),
    "a section without keys": (b"train:\n", "train = None: expected a section"),
    "a section that is a list": (b"train: [max_steps]\n", "expected a section"),
    "a circle": (b"extends: [a]\n", "is no recipe"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name, tmp_path) -> None:
    content, says = WRONG[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        load_settings(path)
    message = str(raised.value)
    assert "mine.yaml" in message and "\n" not in message and len(message) < 300


def test_errors_do_not_quote_a_file(tmp_path) -> None:
    """It may hold a key."""
    (tmp_path / "mine.yaml").write_text("evaluate:\n  endpoint: {key: hush\n")
    with pytest.raises(InputError) as raised:
        load_settings(tmp_path / "mine.yaml")
    assert "hush" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    for path, says in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "larger than 1 MB"),
    ):
        with pytest.raises(InputError, match=says):
            load_settings(path)


def test_a_byte_order_mark_and_a_pipe_are_read(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_bytes("seed: 7".encode("utf-8-sig"))
    assert load_settings(tmp_path / "mine.yaml").seed == 7
    reader, writer = os.pipe()
    os.write(writer, b"seed: 8")
    os.close(writer)
    assert load_settings(f"/dev/fd/{reader}").seed == 8
    os.close(reader)
