"""A client of OpenAI-compatible servers: concurrent chat completions, with retries and a cache.

Replies are appended to a JSONL file, so that an interrupted evaluation resumes. The API key comes
from the environment and goes into the request's header only: no message quotes a header, and the
key is redacted from everything that a server says.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from safesteer.config.settings import EndpointSettings
from safesteer.errors import InputError, nearest, printable
from safesteer.events import Progress
from safesteer.files import append_line, read_lines, write_error
from safesteer.judges.address import completions_url, read_key
from safesteer.judges.deadline import Deadline

Messages = Sequence[dict[str, str]]

CACHE_FILE = "endpoint.jsonl"
MAX_TOKENS = 512
# Seconds before the first retry; doubled for each further one up to the longest, times 0.5 to 1.5.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# Seconds that a server may ask us to wait, for all tries of a request together.
LONGEST_RETRY_AFTER = 120.0
# A request that took all its time is tried this often: a third try would take as long again.
_SLOW_TRIES = 2
# After so many requests in a row without any answer the rest is not asked: the next command does.
# Of a server that has answered before, as many must fail as run at once.
_FEWEST_FAILURES = 3
_MAX_REPLY_BYTES = 8 << 20

_RETRYABLE = {408, 409, 429}
# The server rejects this one request (by its content filter or context), not all of them.
_REJECTED = {400, 413, 422, 451}


@dataclass(frozen=True)
class Reply:
    """The text of a completion, or None and the problem."""

    text: str | None
    problem: str = ""
    silent: bool = False  # the server did not answer, not even with an error
    end: str = ""  # why a completion ended: "length" at the limit of tokens; empty without one
    tokens: int | None = None  # length of the completion, where the server tells


class _Cancelled(Exception):
    """Another request has failed in a way that all would."""


class _Retry(Exception):
    """The request may succeed later, after `retry_after` seconds if the server says so."""

    def __init__(
        self, problem: str, retry_after: float | None = None, *, silent: bool = True
    ) -> None:
        super().__init__(problem)
        self.retry_after = retry_after
        self.silent = silent  # the server did not answer, not even with an error
        self.slow = False  # the try took all its time


class _Rejected(Exception):
    """This request fails for good."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """No redirects: they could send the request and its key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class ChatClient:
    """A model behind a server.

    Args:
        settings: address, name of the key's environment variable, timeout, retries.
        model: the server's name of the model, in place of the settings'.
        cache_dir: folder for replies; None keeps them in memory.
        body: more keys of every request, or others.
        address: what the user calls the address, for messages.

    Raises:
        InputError: address or model is missing, or address or key is malformed.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        model: str | None = None,
        cache_dir: Path | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        address: str = "evaluate.endpoint.base_url",
    ) -> None:
        self.settings = settings
        self._more = dict(body or {})
        self._address = address
        self.model = model or settings.model or ""
        if not self.model:
            raise InputError(
                "judge endpoint has no model. Try: evaluate.endpoint.model=MODEL, or the judge"
                " endpoint=MODEL"
            )
        self.url, self.shown_url = completions_url(settings.base_url)
        self._key = read_key(settings.api_key_env)
        self._random = random.Random()  # the run's seeded generator must not draw the jitter
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._cache = cache_dir / CACHE_FILE if cache_dir is not None else None
        self._reached = False
        self._failures = 0  # requests in a row, with all their tries
        self._last_problem = ""
        self._answered = False
        self._open_requests: set[Deadline] = set()

    @cached_property
    def _replies(self) -> dict[str, str]:
        """The kept replies; read late, since a fresh run deletes the file after its checks."""
        return _read_cache(self._cache)

    def complete(
        self,
        conversations: Sequence[Messages],
        progress: Progress | None = None,
        usable: Callable[[str], bool] = bool,
    ) -> list[Reply]:
        """The model's reply to each conversation, in their order; equal ones make one request.

        Replies that are not `usable` are not kept, so that a later evaluation asks again. A server
        that is silent for several requests is not asked any more by this client.

        Raises:
            InputError: no request can succeed, because of the address, the key or the model.
        """
        requests = [self._body(messages) for messages in conversations]
        order = [self._cache_key(body) for body in requests]
        bodies = dict(zip(order, requests, strict=True))
        share = Counter(order)
        kept = {key: self._replies[key] for key in bodies if key in self._replies}
        found = {key: Reply(text) for key, text in kept.items() if usable(text)}
        todo = [key for key in bodies if key not in found]

        def settle(key: str, reply: Reply) -> None:
            found[key] = reply
            if progress is not None:
                progress(sum(share[key] for key in found), len(order))

        self._stop.clear()
        if todo and not self._reached:
            # The first alone, so that a wrong address or key costs one request.
            key = todo.pop(0)
            settle(key, self._request(key, bodies[key], usable))
        executor = ThreadPoolExecutor(self.settings.advanced.concurrency)
        try:
            running = {
                executor.submit(self._request, key, bodies[key], usable): key for key in todo
            }
            for future in as_completed(running):
                settle(running[future], future.result())
        finally:
            # Also on Ctrl-C: no request waits any longer, for a retry or for its reply.
            self._stop.set()
            for request in list(self._open_requests):
                request.expire()
            executor.shutdown(cancel_futures=True)
        return [found[key] for key in order]

    def _body(self, messages: Messages) -> bytes:
        request = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            **self._more,
        }
        return json.dumps(request, sort_keys=True).encode("ascii")

    def _cache_key(self, body: bytes) -> str:
        return hashlib.sha256(self.shown_url.encode() + b"\n" + body).hexdigest()

    def _request(self, key: str, body: bytes, usable: Callable[[str], bool]) -> Reply:
        at_once = self.settings.advanced.concurrency if self._answered else 0
        if self._failures >= max(_FEWEST_FAILURES, at_once):
            return Reply(None, self._last_problem, silent=True)
        reply = self._try(body)
        with self._lock:
            self._failures = self._failures + 1 if reply.silent else 0
            self._last_problem = reply.problem
            self._answered = self._answered or not reply.silent
        if reply.text is not None and usable(reply.text):
            self._store(key, reply.text)
        return reply

    def _try(self, body: bytes) -> Reply:
        """Ask until there is a reply, or a reason to stop."""
        pause, waited, slow = FIRST_PAUSE, 0.0, 0
        for tries_left in range(self.settings.advanced.retries, -1, -1):
            if self._stop.is_set():
                raise _Cancelled
            try:
                return self._reply(self._post(body))
            except _Retry as retry:
                patience = retry.retry_after or 0.0
                waited += patience
                slow += retry.slow
                if not tries_left or slow >= _SLOW_TRIES or waited > LONGEST_RETRY_AFTER:
                    return Reply(None, str(retry), silent=retry.silent)
                wanted = min(pause, LONGEST_PAUSE) * self._random.uniform(0.5, 1.5)
                self._stop.wait(max(wanted, patience))
                pause *= 2
            except _Rejected as rejected:
                return Reply(None, str(rejected))
        raise AssertionError("the last try returns")

    def _post(self, body: bytes) -> bytes:
        """The body of the server's reply; raises _Retry, _Rejected or InputError."""
        limit = self.settings.advanced.timeout
        with Deadline(limit) as deadline:
            self._open_requests.add(deadline)
            try:
                return self._exchange(deadline, body)
            except _Retry:
                if not deadline.expired:
                    raise
            finally:
                self._open_requests.discard(deadline)
        self._reached = True  # it took the request
        late = _Retry(f"no verdict: no reply within {limit:g} s")
        late.slow = True
        raise late

    def _exchange(self, deadline: Deadline, body: bytes) -> bytes:
        try:
            with self._open(self.url, deadline, body) as response:
                self._reached = True
                data = bytes(response.read(_MAX_REPLY_BYTES))
            if deadline.expired:  # a reply without a length ends where it was cut
                raise _Retry("")
            return data
        except urllib.error.HTTPError as error:
            self._reached = True
            with error:
                self._raise_status(error)
        except urllib.error.URLError as error:
            reason = self._clean(str(error.reason))
            if not self._reached and not deadline.connected:
                raise InputError(
                    f"cannot connect to {self.shown_url} ({reason}). Try:"
                    f" start the server, or correct {self._address}"
                ) from None
            raise _Retry(f"no verdict: cannot connect ({reason})") from None
        except TimeoutError:
            deadline.expired = True  # the socket's own limit is the same
            raise _Retry("") from None
        except (OSError, http.client.HTTPException) as error:
            self._reached = True
            raise _Retry(f"no verdict: the connection broke ({type(error).__name__})") from None

    def _open(self, url: str, deadline: Deadline, body: bytes | None = None) -> Any:
        """Send a request: POST with a body, GET without."""
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        return deadline.opener(_NoRedirect()).open(request)

    def _raise_status(self, error: urllib.error.HTTPError) -> NoReturn:
        status = error.code
        variable = self.settings.api_key_env
        if status in {401, 403}:
            # The server's message may quote the key.
            state = "is not accepted" if self._key else "is not set"
            raise InputError(
                f"{self.shown_url} answers {status}: the key in the environment variable"
                f" {variable} {state}. Try: export {variable}=KEY"
            ) from None
        try:
            message = self._clean(_server_message(error.read(_MAX_REPLY_BYTES)))
        except (OSError, http.client.HTTPException):
            message = ""
        message = f" ({message})" if message else ""
        if status in _RETRYABLE or status >= 500:
            raise _Retry(
                f"no verdict: the server answers {status}{message}",
                _retry_after(error.headers),
                silent=False,
            ) from None
        if status in _REJECTED:
            raise _Rejected(f"no verdict: the server answers {status}{message}") from None
        problem = f"{self.shown_url} answers {status}{message}"
        if status == 404:
            hint = nearest(self.model, map(self._clean, self.models()))
            problem += f": no model '{self.model}'{hint}, or a wrong address"
        raise InputError(f"{problem}. Try: check {self._address}") from None

    def models(self) -> list[str]:
        """The names in the server's list of models; none where it cannot be read."""
        url = self.url.replace("/chat/completions", "/models", 1)
        try:
            limit = min(5.0, self.settings.advanced.timeout)
            with Deadline(limit) as deadline, self._open(url, deadline) as response:
                listed = json.loads(response.read(_MAX_REPLY_BYTES))
            return [str(entry["id"]) for entry in listed["data"]]
        except Exception:  # not every server has one, and a request says what is wrong
            return []

    def _reply(self, data: bytes) -> Reply:
        try:
            completion = json.loads(data)
            choice = completion["choices"][0]
            text, end = choice["message"]["content"], str(choice.get("finish_reason") or "stop")
            tokens = (completion.get("usage") or {}).get("completion_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Rejected("no verdict: the reply is not a chat completion") from None
        if not isinstance(text, str) or not text.strip():
            return Reply(None, "no verdict: the reply is empty", end=end)
        return Reply(
            self._redact(text), end=end, tokens=tokens if isinstance(tokens, int) else None
        )

    def _store(self, key: str, text: str) -> None:
        line = json.dumps({"request": key, "model": self.model, "reply": text})
        with self._lock:
            self._replies[key] = text
            if self._cache is None:
                return
            try:
                append_line(self._cache, line.encode("ascii"))
            except OSError as error:
                raise write_error(self._cache, error) from None

    def _redact(self, text: str) -> str:
        # Shorter keys ("EMPTY", "none") are not secret, and may be words of the text.
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _clean(self, text: str) -> str:
        """A message of the server or the system as one short line, without the key."""
        return printable(" ".join(self._redact(text).split()), lines=False)[:160]


def _read_cache(path: Path | None) -> dict[str, str]:
    """The replies in the file; damaged lines are skipped."""
    replies: dict[str, str] = {}
    if path is None or not path.exists():
        return replies
    try:
        for row in read_lines(path):
            if isinstance(row, dict) and isinstance(row.get("reply"), str):
                replies[str(row.get("request"))] = row["reply"]
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot read {path}: {why}. Try: check its permissions") from None
    return replies


def _server_message(data: bytes) -> str:
    """The message in an error reply of OpenAI's form, else an empty string."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
