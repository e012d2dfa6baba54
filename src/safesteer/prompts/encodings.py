"""Text of prompt files: UTF-8, UTF-16 or UTF-32 by its mark, Windows-1252 where that is clear."""

from __future__ import annotations

import codecs
import re

from safesteer.errors import InputError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",  # spreadsheets write one
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What Western European text holds beside ASCII, in runs of one or two. Other encodings read as
# this one give other characters, or longer runs of them.
_WESTERN = set("äöüÄÖÜßéèêëàâçñïîôùûíóá¿¡“”‘’„…–—€£°§«»\xa0")  # noqa: RUF001


def decode(data: bytes, source: str) -> tuple[str, str]:
    """The text of a file, and a note if its encoding was inferred; "" otherwise."""
    name = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        western = data.decode("cp1252", errors="replace") if name == "utf-8" else "\ufffd"
        runs = re.findall(r"[^\x00-\x7f]+", western)
        if all(len(run) <= 2 and _WESTERN.issuperset(run) for run in runs):
            return western, "read as Windows-1252, since it is not UTF-8"
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} is not {name.removesuffix('-sig').upper()} (byte {error.start + 1},"
            f" line {line}). Try: save it as UTF-8"
        ) from error
    if name == "utf-8" and text.count("\0") > len(text) / 4:
        raise InputError(
            f"{source} seems to be UTF-16 without a byte-order mark. Try: save it as UTF-8"
        )
    return text, ""
