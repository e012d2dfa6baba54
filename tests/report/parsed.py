"""A parser of pages that fails where an element is not closed."""

from __future__ import annotations

import html.parser

VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "line", "circle", "polygon", "polyline"}


class Page(html.parser.HTMLParser):
    """Elements, attributes and text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.within: list[str] = []  # the element that each piece of text is in, as a path
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, (tag, self._open[-3:])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        self.within.append(" ".join(f"{tag}.{style}" for tag, style in self._open))

    def places_of(self, piece: str) -> list[str]:
        """Where a piece of text stands."""
        return [place for place, text in zip(self.within, self.text, strict=True) if piece in text]
