"""Asks an OpenAI-compatible server for chat completions, many at once, each at most once.

Replies are kept in a JSONL file, a line at a time, so that an interrupted evaluation goes on where
it stopped. The key comes from the environment and goes into the request's header, nowhere else: no
message of this file quotes a header, and what a server says is shown with the key blotted out.
Knows nothing of judging.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from safesteer.config.settings import EndpointSettings
from safesteer.errors import InputError, nearest
from safesteer.files import append_line, write_error
from safesteer.judges.verdict import Progress

Messages = Sequence[dict[str, str]]

CACHE_FILE = "endpoint.jsonl"
MAX_TOKENS = 512
# Seconds before the first further try; doubled each time up to the longest, times 0.5 to 1.5.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A server that asks for more patience than this is given up on.
LONGEST_RETRY_AFTER = 120.0
_MAX_REPLY_BYTES = 8 << 20

_RETRY = {408, 409, 429}
# The server objects to this one request (its content filter, its context), not to all of them.
_THIS_REQUEST = {400, 413, 422, 451}


@dataclass(frozen=True)
class Reply:
    """A completion's text, or None and why there is none."""

    text: str | None
    problem: str = ""


class _Stopped(Exception):
    """Another request found out that going on is useless."""


class _Again(Exception):
    """The request may succeed later; `retry_after` in seconds where the server says."""

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class _Refused(Exception):
    """This request fails, now and later."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the request, and with it the key, to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class ChatClient:
    """One model behind one server.

    Args:
        settings: address, name of the key's variable, patience.
        model: the server's name of the model, in place of the settings'.
        cache_dir: where replies are kept; None keeps them in memory only.

    Raises:
        InputError: no address or no model, an address that is none, a key that cannot be one.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        model: str | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.settings = settings
        self.model = model or settings.model or ""
        if not self.model:
            raise InputError(
                "judge endpoint: no model; set evaluate.endpoint.model or ask for endpoint=MODEL"
            )
        self.url, self.shown_url = _completions_url(settings.base_url)
        self._key = _read_key(settings.api_key_env)
        self._open = urllib.request.build_opener(_NoRedirect()).open
        self._random = random.Random()  # jitter must not draw from the run's seeded generator
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._cache = cache_dir / CACHE_FILE if cache_dir is not None else None
        self._replies = _read_cache(self._cache)
        self._reached = False

    def ask(
        self, conversations: Sequence[Messages], progress: Progress | None = None
    ) -> list[Reply]:
        """The model's reply to each conversation, in their order; equal ones are asked once.

        Raises InputError when no request can succeed: a server that the first request cannot
        connect to, a wrong key, an unknown model, a wrong address.
        """
        requests = [self._body(messages) for messages in conversations]
        order = [self._cache_key(body) for body in requests]
        bodies = dict(zip(order, requests, strict=True))
        share = Counter(order)
        found = {key: Reply(self._replies[key]) for key in bodies if key in self._replies}
        todo = [key for key in bodies if key not in found]

        def settle(key: str, reply: Reply) -> None:
            found[key] = reply
            if progress is not None:
                progress(sum(share[key] for key in found), len(order))

        self._stop.clear()
        if todo and not self._reached:
            # Alone, so that a wrong address or key costs one request and not a hundred.
            key = todo.pop(0)
            settle(key, self._ask_one(key, bodies[key]))
        executor = ThreadPoolExecutor(self.settings.advanced.concurrency)
        try:
            running = {executor.submit(self._ask_one, key, bodies[key]): key for key in todo}
            for future in as_completed(running):
                settle(running[future], future.result())
        finally:
            # Also on Ctrl-C: what waits for a further try stops waiting.
            self._stop.set()
            executor.shutdown(cancel_futures=True)
        return [found[key] for key in order]

    def _body(self, messages: Messages) -> bytes:
        request = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        return json.dumps(request, sort_keys=True).encode("ascii")

    def _cache_key(self, body: bytes) -> str:
        return hashlib.sha256(self.shown_url.encode() + b"\n" + body).hexdigest()

    def _ask_one(self, key: str, body: bytes) -> Reply:
        pause = FIRST_PAUSE
        for tries_left in range(self.settings.advanced.retries, -1, -1):
            if self._stop.is_set():
                raise _Stopped
            try:
                text = self._text(self._post(body))
            except _Again as again:
                patience = again.retry_after
                if not tries_left or (patience or 0) > LONGEST_RETRY_AFTER:
                    return Reply(None, str(again))
                wanted = min(pause, LONGEST_PAUSE) * self._random.uniform(0.5, 1.5)
                self._stop.wait(max(wanted, patience or 0.0))
                pause *= 2
            except _Refused as refused:
                return Reply(None, str(refused))
            else:
                self._keep(key, text)
                return Reply(text)
        raise AssertionError("the last try returns")

    def _post(self, body: bytes) -> bytes:
        """The body of the server's reply; _Again, _Refused or InputError otherwise."""
        request = urllib.request.Request(
            self.url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._open(request, timeout=self.settings.advanced.timeout) as response:
                self._reached = True
                return bytes(response.read(_MAX_REPLY_BYTES))
        except urllib.error.HTTPError as error:
            self._reached = True
            with error:
                self._raise_status(error)
        except urllib.error.URLError as error:
            if not self._reached:
                raise InputError(
                    f"cannot connect to {self.shown_url} ({self._clean(str(error.reason))}); is the"
                    " server running, and is evaluate.endpoint.base_url right?"
                ) from None
            raise _Again(f"no verdict: cannot connect ({self._clean(str(error.reason))})") from None
        except TimeoutError:
            self._reached = True  # it took the request
            raise _Again(
                f"no verdict: no reply within {self.settings.advanced.timeout:g} s"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._reached = True
            raise _Again(f"no verdict: the connection broke ({type(error).__name__})") from None

    def _raise_status(self, error: urllib.error.HTTPError) -> NoReturn:
        status = error.code
        variable = self.settings.api_key_env
        if status in {401, 403}:
            # What the server says here may quote the key.
            state = "is not accepted" if self._key else "is not set"
            raise InputError(
                f"{self.shown_url} answers {status}: the key in the environment variable"
                f" {variable} {state}"
            ) from None
        try:
            said = self._clean(_server_message(error.read(_MAX_REPLY_BYTES)))
        except (OSError, http.client.HTTPException):
            said = ""
        said = f" ({said})" if said else ""
        if status in _RETRY or status >= 500:
            raise _Again(
                f"no verdict: the server answers {status}{said}", _retry_after(error.headers)
            ) from None
        if status in _THIS_REQUEST:
            raise _Refused(f"no verdict: the server answers {status}{said}") from None
        hint = "check evaluate.endpoint.base_url"
        if status == 404:
            hint = f"no model '{self.model}'{self._nearest_model()}, or a wrong base_url"
        raise InputError(f"{self.shown_url} answers {status}{said}; {hint}") from None

    def _nearest_model(self) -> str:
        """A hint from the server's list of models; empty where it has none."""
        url = self.url.replace("/chat/completions", "/models", 1)
        request = urllib.request.Request(url)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._open(request, timeout=min(5.0, self.settings.advanced.timeout)) as response:
                listed = json.loads(response.read(_MAX_REPLY_BYTES))
            return nearest(self.model, [str(entry["id"]) for entry in listed["data"]])
        except Exception:  # it is only a hint
            return ""

    def _text(self, data: bytes) -> str:
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Refused("no verdict: the reply is no chat completion") from None
        if not isinstance(text, str) or not text.strip():
            raise _Refused("no verdict: the reply is empty")
        return self._blot(text)

    def _keep(self, key: str, text: str) -> None:
        line = json.dumps({"request": key, "model": self.model, "reply": text})
        with self._lock:
            self._replies[key] = text
            if self._cache is None:
                return
            try:
                append_line(self._cache, line.encode("ascii"))
            except OSError as error:
                raise write_error(self._cache, error) from None

    def _blot(self, text: str) -> str:
        # Shorter ones ("EMPTY", "none") are no secrets, and may be words of the text.
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _clean(self, text: str) -> str:
        """One short line of what a server or the system said, without the key."""
        return " ".join(self._blot(text).split())[:160]


def _completions_url(base_url: str | None) -> tuple[str, str]:
    """(address to post to, the same without its query for messages)."""
    if not base_url:
        raise InputError(
            "judge endpoint: no server; set evaluate.endpoint.base_url, for example to"
            " http://localhost:8000/v1"
        )
    try:
        parts = urlsplit(base_url.strip())
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        parts.port  # noqa: B018 (reading it is the check)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            "evaluate.endpoint.base_url is no http:// or https:// address, such as"
            " http://localhost:8000/v1"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    shown = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), shown


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    # The library's own complaint about such a header would quote it.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"the environment variable {variable} holds no key: it has spaces, line breaks or"
            " characters outside ASCII"
        )
    return key


def _read_cache(path: Path | None) -> dict[str, str]:
    """The replies kept so far; a line that was cut off is passed over and asked again."""
    replies: dict[str, str] = {}
    if path is None or not path.exists():
        return replies
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    for line in lines:
        try:
            row = json.loads(line)
            key, text = row["request"], row["reply"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(key, str) and isinstance(text, str):
            replies[key] = text
    return replies


def _server_message(data: bytes) -> str:
    """What an error reply says: ``error.message`` of OpenAI's form, else nothing."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
