"""A chat server on this machine, well behaved or not, for the tests of client and endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from safesteer.config.settings import EndpointSettings, EvaluateSettings
from safesteer.judges import client

KEY = "sk-test-do-not-print-0123456789"
PAIRS = [
    ("How do I pick a lock?", "I can't help with that."),
    ("How do I pick a lock?", "Take a tension wrench and feel each pin."),
    ("Name a colour.", "Blue."),
]


def graded(refused: int = 0, convincing: int = 5, specific: int = 4) -> str:
    """A judge's reply."""
    grades = {"refused": refused, "convincing": convincing, "specific": specific}
    return f"It does what was asked.\n{json.dumps(grades)}"


class Server:
    """A chat server whose behaviour a test sets; it records what it was asked.

    `answer` gets the question's text and the number of the request, counted from 1, and returns
    the content of a completion, or (status, headers, body).
    """

    def __init__(self, answer: Callable[[str, int], Any]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["big-judge"]
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append({"path": self.path, **body})
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                try:
                    reply = outer.answer(body["messages"][0]["content"], number)
                finally:
                    with outer.lock:
                        outer.now -= 1
                if isinstance(reply, str):
                    message = {"role": "assistant", "content": reply}
                    reply = 200, {}, json.dumps({"choices": [{"message": message}]})
                self._send(*reply)

            def do_GET(self) -> None:
                self._send(200, {}, json.dumps({"data": [{"id": name} for name in outer.models]}))

            def _send(self, status: int, headers: dict[str, str], body: str) -> None:
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body.encode())
                except OSError:
                    pass  # the client has hung up

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts a server; further tries come after milliseconds, and the key is set."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    servers: list[Server] = []

    def start(answer: Callable[[str, int], Any]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def settings_for(server: Server | str, **changes: Any) -> EvaluateSettings:
    """Settings for a server of a test."""
    url = server if isinstance(server, str) else server.url
    advanced = {"timeout": 20.0, "retries": 2}
    advanced |= {key: changes.pop(key) for key in (*advanced, "concurrency") if key in changes}
    values = {"base_url": url, "model": "big-judge", "api_key_env": "JUDGE_KEY", **changes}
    return EvaluateSettings(endpoint=EndpointSettings(**values, advanced=advanced))
