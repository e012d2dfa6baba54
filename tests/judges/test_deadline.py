"""The limit of a whole request, against sockets that drip."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator

import pytest

from safesteer.judges.deadline import Deadline

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def drip() -> Iterator[Callable[[bytes, bytes], str]]:
    """Starts a server that sends one part at once and the other byte by byte."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def start(at_once: bytes, slowly: bytes) -> str:
        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.sendall(at_once)
                    for byte in slowly:
                        if ended.wait(0.05):
                            return
                        connection.sendall(bytes([byte]))
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield start
    ended.set()
    listening.close()


@pytest.mark.parametrize(
    ("at_once", "slowly"),
    [
        (b"", HEAD * 100),
        (HEAD, b"X-More: 1\r\n" * 100),
        (HEAD + b"Content-Length: 9999\r\n\r\n", b"x" * 9999),
        (HEAD + b"\r\n", b"x" * 9999),
        (b"", b""),
    ],
)
def test_a_dripping_reply_is_cut(drip, monkeypatch, at_once: bytes, slowly: bytes) -> None:
    """Status line, headers, body with and without a length; each byte comes in time."""
    monkeypatch.setenv("no_proxy", "*")
    url = drip(at_once, slowly)
    start = time.monotonic()
    with Deadline(0.3) as deadline:
        try:
            deadline.opener().open(url).read()
        except (OSError, http.client.HTTPException):
            pass
        else:
            assert deadline.expired
    assert time.monotonic() - start < 2


def test_a_reply_in_time_is_whole(drip, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    url = drip(HEAD + b"Content-Length: 2\r\n\r\n", b"ok")
    with Deadline(20) as deadline:
        assert deadline.opener().open(url).read() == b"ok"
    assert deadline.connected and not deadline.expired


def test_all_addresses_of_a_host_share_the_limit(monkeypatch) -> None:
    """None of them answers; the second gets what the first left."""
    limits: list[float] = []

    def silent(address: object, timeout: float) -> None:
        limits.append(timeout)
        time.sleep(0.06)
        raise TimeoutError("timed out")

    found = [(0, 0, 0, "", ("192.0.2.1", 80))] * 9
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setenv("no_proxy", "*")
    with Deadline(0.1) as deadline, pytest.raises(urllib.error.URLError):
        deadline.opener().open("http://example.invalid/")
    assert len(limits) == 2 and limits[1] < limits[0] <= 0.1
    assert not deadline.connected
