"""Detection of text that repeats itself."""

from __future__ import annotations

import re


def is_looping(text: str, *, repeats: int = 4) -> bool:
    """Whether a text ends in a sequence of 1 to 12 words that is repeated `repeats` times or more.

    Short sequences must repeat more often: "very, very" is style.
    """
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    for size in range(1, 13):
        needed = max(repeats, 8 // size)
        if len(words) < size * needed:
            continue
        unit = words[-size:]
        # Numbers alone are a list or a sum, not a loop.
        if all(not word.isalpha() for word in unit):
            needed = max(needed, 16 // size)
        tail = words[-size * needed :]
        if len(tail) == size * needed and tail == unit * needed:
            return True
    return False
