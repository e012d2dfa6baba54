"""The text of an answer as refusal patterns read it: plain letters, no markup, in sentences.

Undoes what hides a word from a pattern: zero-width and combining characters, letters of other
scripts that look Latin, the many apostrophes, markdown, HTML and terminal colors.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Letters of other scripts, and marks, as the Latin ones that they look like. Hangul's fillers are
# letters that nobody sees.
_LOOKALIKES = str.maketrans(
    "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425\u0423"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u04bb\u04cf\u051b\u051d"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03b1\u03b9\u03bd\u03bf\u03c1\u03c5\u0131\u0251\u0261"
    "\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02c8\u2032\u2035\uff07\ua78c\u055a\u00b4"
    "\u201c\u201d\u201e\u201f\u2033",
    "ABCEHIJKMOPSTXYaeopcyxisjdhlqwABEZHIKMNOPTYXaivopuiag'''''''''''''\"\"\"\"\"",
    "\u115f\u1160\u3164\uffa0",
)
_UNSEEN = {"Mn", "Me", "Cf", "Cc"}  # combining, zero-width and control characters
_TERMINAL = re.compile(r"\x1b\[[\d;]*[A-Za-z]|[\x00-\x08\x0e-\x1b\x7f]")
_TAG = re.compile(r"</?(?:a|b|i|u|p|em|br|div|span|strong|h[1-6])(?:[\s/][^<>]*)?>", re.IGNORECASE)
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])`(?=(?:t|m|s|d|re|ve|ll)\b)", re.IGNORECASE)
# Stars and underscores at the start of a line, with a space behind, are list markers.
_EMPHASIS = re.compile(
    r"\*\*|__|~~|(?<=\S)\*|\*(?=\S)|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)|^#+ |(?<!`)`(?!`)", re.MULTILINE
)
_BARE_CONTRACTION = re.compile(
    r"\b(?:(i)(m)|(can|don|won|isn|doesn|didn|couldn|wouldn|shouldn|aren|wasn)(t))\b"
)
_ROLE_TAG = re.compile(
    r"^(?:\s|<\|?/?\w+\|?>|\[/?\w+\]|#+ ?(?:response|answer|assistant):?"
    r"|(?:assistant|ai|bot|chatbot|answer|response|model|output)(?::|\n))+",
    re.IGNORECASE,
)
_QUOTE = re.compile(r'"[^"\n]{3,400}"|(?<![\w.])\'[^\'\n]{3,200}\'(?!\w)')
_LIST_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*+\u2022]|step \d+:?)\s+", re.IGNORECASE)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:\w*$)?", re.MULTILINE)
# A code block of more lines is a program.
_QUOTED_LINES = 3
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+")
_BEFORE_WORDS = re.compile(r"^[^\w\"'(]+")


def clean(text: str) -> str:
    """Plain letters in lower case, without reasoning block, role tag and markup."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", " ", text, flags=re.DOTALL)
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = _seen(text)
    text = _TAG.sub(" ", _TERMINAL.sub("", text))
    text = _EMPHASIS.sub("", _APOSTROPHE.sub("'", text))
    text = _ROLE_TAG.sub("", text).strip().lower()
    return _BARE_CONTRACTION.sub(r"\1\3'\2\4", text)


def sentences(text: str) -> tuple[list[str], int, bool]:
    """Cut a clean text into sentences.

    Code and quotes are no sentences of the answer, unless there is nothing else.

    Returns:
        The sentences, the number of list items, and whether there is code beside the sentences.
    """
    outside = _CODE.sub(" ", text)
    if not (outside.startswith('"') and outside.endswith('"')):
        outside = _QUOTE.sub(" it ", outside)
    lines = outside.splitlines()
    found, items = _split([line for line in lines if not line.startswith(">")])
    if found:
        return found, items, "```" in text
    lines = [line.lstrip("> ") for line in _FENCE.sub("", text).splitlines() if line.strip()]
    if len(lines) > _QUOTED_LINES and "```" in text:
        return [], 0, True
    return *_split(lines), False


def _split(lines: list[str]) -> tuple[list[str], int]:
    found: list[str] = []
    items = 0
    for line in lines:
        body, markers = _LIST_ITEM.subn("", line)
        items += markers
        parts = (re.sub(r"\s+", " ", part).strip() for part in _SENTENCE_END.split(body))
        found.extend(_BEFORE_WORDS.sub("", part) for part in parts if re.search(r"\w", part))
    return found, items


def _seen(text: str) -> str:
    """The characters that a person sees, in their compatible Latin form where there is one."""
    # Zero-width spaces may be the only ones: no English word is this long.
    gap = "" if " " in text or len(text) < 30 else " "
    text = text.replace("\u200b", gap).translate(_LOOKALIKES)
    return "".join(
        character
        for character in unicodedata.normalize("NFKD", text)
        if character.isspace() or unicodedata.category(character) not in _UNSEEN
    )
