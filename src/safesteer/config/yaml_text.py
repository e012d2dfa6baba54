"""YAML of settings: sections and values alone, checked for what YAML itself lets pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from safesteer.errors import InputError, reason

_DEPTH = 20  # of sections within sections; ours have four
_SIZE = 2**20  # characters


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, repeated keys and deep nesting.

    A few lines of aliases can stand for billions of values, and of a repeated key YAML silently
    takes the last.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*name), which settings do not need", problem_mark=mark
            )
        if self.depth == _DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_DEPTH} levels of nesting", problem_mark=mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key '{key.value}' appears twice",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> str:
    """The text of a config file; InputError if it cannot be read."""
    try:
        with path.open("rb") as file:  # which may be a pipe, or a device without end
            return file.read(4 * _SIZE + 1).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(
            f"the config file {path} is not UTF-8 text. Try: save it as UTF-8"
        ) from None
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"cannot read the config file {path}: {why}. Try: check the path"
        ) from None


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; None for one without any.

    Raises:
        InputError: the text is not valid, or larger or deeper than settings are; the message names
            the line and does not quote it, since it may hold a key.
    """
    if len(text) > _SIZE:
        raise InputError(f"{where}: larger than 1 MB, which settings never are. Try: another file")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = " ".join((error.problem or "not readable").split())
        raise InputError(
            f"{where}: not valid YAML ({place}{problem}). Try: keys and values, as in"
            " `safesteer recipes show default`"
        ) from None
    except yaml.reader.ReaderError as error:
        raise InputError(
            f"{where}: not valid YAML (the character U+{error.character:04X} is not allowed). Try:"
            " save it as plain text in UTF-8"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError) as error:
        # Numbers of thousands of digits, dates such as 2020-99-99, keys that are lists.
        raise InputError(
            f"{where}: not valid YAML{reason(error)}. Try: put quotes around the value"
        ) from None
