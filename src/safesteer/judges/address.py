"""The address and the key of a judging server, from the settings and the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

from safesteer.errors import InputError


def completions_url(base_url: str | None) -> tuple[str, str]:
    """(address of the requests, the same without its query for messages).

    Raises:
        InputError: there is none.
    """
    if not base_url:
        raise InputError(
            "judge endpoint has no server. Try: evaluate.endpoint.base_url=http://localhost:8000/v1"
        )
    parts = urlsplit(base_url)  # the settings have checked it
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    shown = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), shown


def read_key(variable: str) -> str:
    """The key in the environment variable; "" where it is not set.

    Raises:
        InputError: it holds what cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip()
    # The library's error for such a header would quote it.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"the environment variable {variable} holds no key, but spaces, line breaks or"
            f" characters outside ASCII. Try: export {variable}=KEY"
        )
    return key
