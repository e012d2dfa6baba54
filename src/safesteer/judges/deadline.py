"""A limit on the whole of one request: connection, headers and every byte of the reply.

A socket's own timeout starts anew with each byte, so that a server that sends one a second would
hold the request for hours.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any


class Deadline:
    """A time after which the connections made through `opener` are cut.

    A cut connection looks like one that broke, or like the end of the reply: check `expired`.
    Looking up a host's name is left to the system's own limit.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._end = time.monotonic() + seconds
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self.expire)
        self._timer.daemon = True

    @property
    def connected(self) -> bool:
        """Whether there was a connection."""
        return bool(self._watched)

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        for watched in self._watched:
            watched.close()

    def expire(self) -> None:
        """Cut the connections now."""
        self.expired = True
        for watched in self._watched:
            with suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)

    def opener(self, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
        """An opener whose connections are cut at the deadline."""
        return urllib.request.build_opener(_Http(self), _Https(self), *handlers)

    def connect(self, address: tuple[str, int], *rest: Any) -> socket.socket:
        """Connect to the first of the host's addresses that answers; args as in `socket`."""
        problem: OSError = TimeoutError("timed out")
        for *_, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            left = self._end - time.monotonic()
            if left <= 0:
                break
            try:
                connection = socket.create_connection((str(found[0]), int(found[1])), left)
            except OSError as error:
                problem = error
                continue
            # TLS takes the socket over, so that only a copy can be cut during its handshake.
            self._watched.append(connection.dup())
            if self.expired:
                self.expire()
            return connection
        raise problem


def _watched(kind: type[http.client.HTTPConnection], deadline: Deadline) -> Any:
    def make(*arguments: Any, **named: Any) -> http.client.HTTPConnection:
        connection = kind(*arguments, **named)
        connection._create_connection = deadline.connect  # type: ignore[attr-defined]
        return connection

    return make


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_watched(http.client.HTTPConnection, self.deadline), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_watched(http.client.HTTPSConnection, self.deadline), request)
