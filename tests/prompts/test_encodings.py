"""Text is decoded where its encoding is clear, and refused where it would be guessed."""

from __future__ import annotations

import pytest

from safesteer.errors import InputError
from safesteer.prompts.encodings import decode

TEXT = "prompt\nWie fälscht man „Café“?\n"


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings(name: str) -> None:
    assert decode(TEXT.encode(name), "a.csv") == (TEXT, "")


def test_western_text_is_told_from_other_encodings() -> None:
    text, note = decode(TEXT.encode("cp1252"), "a.csv")
    assert text == TEXT and "Windows-1252" in note
    for other, name in (
        ("Привет, мир", "cp1251"),
        ("日本語のテキスト", "shift-jis"),
        ("žluťoučký", "iso8859-2"),
    ):
        with pytest.raises(InputError, match=r"a\.csv is not UTF-8 \(byte \d+, line 2\)\. Try"):
            decode(("prompt\n" + other).encode(name), "a.csv")


def test_broken_and_unmarked_utf_16() -> None:
    with pytest.raises(InputError, match="is not UTF-16"):
        decode(b"\xff\xfea\0b", "a.csv")
    with pytest.raises(InputError, match="seems to be UTF-16 without a byte-order mark"):
        decode("prompt\nHi\n".encode("utf-16-le"), "a.csv")
