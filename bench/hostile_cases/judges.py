"""Judges that fail, answer nonsense or hang: no verdict is invented, lost, or counted as done."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.hostile_cases.case import (
    Broken,
    Case,
    SilentLoss,
    check_clean,
    command,
    demand,
    stops,
    works,
)
from bench.hostile_cases.room import MODEL_COMMANDS, Room, read_manifest, set_options
from bench.hostile_cases.weights import make_guard

KIND = "judges and servers"
KEY = "sk-hostile-do-not-print-0123456789"
GRADES = 'As asked.\n{"refused": 0, "convincing": 5, "specific": 4}'
Reply = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """One request; `reply` decides what comes back."""

    reply: Reply
    asked: list[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with Handler.lock:
            Handler.asked.append(body)
            number = len(Handler.asked)
        with suppress(OSError):  # the client has hung up
            type(self).reply(self, number)

    def send(self, body: str | bytes, status: int = 200, **headers: str) -> None:
        """A whole reply."""
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def completion(text: Any) -> str:
    """A chat completion with this content."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def says(text: Any) -> Reply:
    """A server whose model always says the same."""
    return lambda handler, number: handler.send(completion(text))


def sends(body: str | bytes, status: int = 200, **headers: str) -> Reply:
    """A server with one reply to everything."""
    return lambda handler, number: handler.send(body, status, **headers)


def drips(handler: Handler, number: int) -> None:
    """A byte now and then, so that no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def drips_headers(handler: Handler, number: int) -> None:
    """The same before the body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for header in range(400):
        handler.wfile.write(f"X-{header}: 1\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.1)


def hangs(handler: Handler, number: int) -> None:
    """No reply."""
    time.sleep(40)


def breaks_off(handler: Handler, number: int) -> None:
    """Half a reply."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(completion(GRADES)[:30].encode())
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def hangs_up(handler: Handler, number: int) -> None:
    """The connection closed without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def every_second(bad: Reply) -> Reply:
    """Every second request fails."""
    return lambda handler, number: (bad if number % 2 == 0 else says(GRADES))(handler, number)


def at_first(bad: Reply, times: int = 1) -> Reply:
    """The first requests fail, and their repetition does not."""
    return lambda handler, number: (bad if number <= times else says(GRADES))(handler, number)


def until(number_of: int, bad: Reply) -> Reply:
    """All fail after so many."""
    return lambda handler, number: (says(GRADES) if number <= number_of else bad)(handler, number)


ESCAPES = "\x1b[31mred\x1b]0;title\x07 \u202e"
ERROR = json.dumps({"error": {"message": f"no {ESCAPES} {KEY}"}})
# Servers that give no verdict on some answer or on any.
BAD: dict[str, Reply] = {
    "500": sends("oops", 500),
    "503 with a word of HTML": sends("<html>busy</html>", 503),
    "429": sends("slow down", 429),
    "429 for an hour": sends("slow down", 429, Retry_After="3600"),
    "401": sends(ERROR, 401),
    "403": sends(ERROR, 403),
    "404": sends(ERROR, 404),
    "400": sends(ERROR, 400),
    "a redirect": sends("", 302, Location="http://127.0.0.1:9/v1"),
    "an empty body": sends(""),
    "no JSON": sends("<html>hello</html>"),
    "bytes": sends(bytes(range(256))),
    "JSON nested 100,000 deep": sends("[" * 100_000),
    "no choices": sends('{"choices": []}'),
    "a list": sends("[]"),
    "no content": says(None),
    "an empty content": says("  "),
    "content parts": says([{"type": "text", "text": GRADES}]),
    "no grades": says("I would rather not."),
    "grades out of range": says('{"refused": 0, "convincing": 9, "specific": 4}'),
    "grades that are words": says('{"refused": "no", "convincing": "very", "specific": "so"}'),
    "grades that are NaN": says('{"refused": 0, "convincing": NaN, "specific": 4}'),
    "grades cut": says('{"refused": 0, "convincing": 5, "spec'),
    "control characters": says(f"{ESCAPES}"),
    "half a reply": breaks_off,
    "hangs up": hangs_up,
    "hangs": hangs,
    "drips": drips,
    "drips headers": drips_headers,
    "500 to every second": every_second(sends("oops", 500)),
    "no grades to every second": every_second(says("Hm.")),
    "500 after three": until(3, sends("oops", 500)),
    "hangs up after three": until(3, hangs_up),
}
# Servers that recover within the retries.
GOOD: dict[str, Reply] = {
    "right": says(GRADES),
    "500 at first": at_first(sends("oops", 500)),
    "429 at first": at_first(sends("slow down", 429, Retry_After="0")),
    "hangs up at first": at_first(hangs_up),
    "thoughts before the grades": says(f'<think>{{"refused": 1}}</think>\n{GRADES}'),
    "grades as words of digits": says('{"refused": "0", "convincing": "5", "specific": "4"}'),
}


class Serving:
    """A server on this machine for the length of a `with`."""

    def __init__(self, reply: Reply) -> None:
        Handler.asked = []
        handler = type("Handler", (Handler,), {"reply": staticmethod(reply)})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def change(self, reply: Reply) -> None:
        """Another behavior from now on."""
        self.http.RequestHandlerClass = type("Handler", (Handler,), {"reply": staticmethod(reply)})
        Handler.asked = []


def options(url: str) -> list[str]:
    """Settings of the judge: impatient, so that a case takes seconds."""
    os.environ |= {"HOSTILE_KEY": KEY, "no_proxy": "*"}
    from safesteer.judges import client

    client.FIRST_PAUSE = 0.01
    return [
        "--judges=endpoint",
        *set_options(
            {
                "evaluate.endpoint.base_url": url,
                "evaluate.endpoint.model": "big-judge",
                "evaluate.endpoint.api_key_env": "HOSTILE_KEY",
                "evaluate.endpoint.advanced.timeout": 0.5,
                "evaluate.endpoint.advanced.retries": 1,
                "evaluate.endpoint.advanced.concurrency": 2,
            }
        ),
    ]


def _evaluates(reply: Reply, room: Room) -> None:
    """A model: the command fails, and says which judge gave no verdict."""
    with_judge = options(Serving(reply).url)
    stops(
        room,
        *("eval", "model", "-c", "small.yaml", *with_judge),
        names=r"endpoint|127\.0\.0\.1|judge",
        never=re.escape(KEY),
        within=25,
    )


def _runs(reply: Reply, room: Room) -> None:
    """A run: unfinished until its judge has answered, and then asked only for what is missing."""
    server = Serving(reply)
    words = ["run", "model", "-c", "small.yaml", "-o", "new", *options(server.url)]
    bad = command(room, *words)
    if bad.code == 0:
        raise SilentLoss(f"exit 0 without verdicts: {bad.said[-200:]!r}")
    check_clean(bad, re.escape(KEY))
    demand("Traceback" not in bad.err and bad.err.count("\n") == 1, f"{bad.err[-300:]!r}")
    stages = read_manifest(room / "new")["stages"]
    evaluated = stages.get("evaluate", {}).get("status")
    demand(evaluated != "done", "the evaluation counts as done", silent=True)
    kept = {f: f.read_text() for f in (room / "new").rglob("endpoint.jsonl")}
    server.change(says(GRADES))
    good = command(room, *words)
    demand(good.code == 0, f"does not resume: {good.err[-300:]!r}")
    demand(_verdicts_missing(room / "new") == 0, "verdicts are missing", silent=True)
    for name, text in kept.items():
        demand(name.read_text().startswith(text), "kept replies were lost")


def _verdicts_missing(run: Path) -> int:
    """Answers of harmful prompts without a verdict of the judge."""
    missing = 0
    for path in (run / "eval" / "samples").glob("*-harmful.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            missing += '"unsafe": null' in line or '"refused": null' in line
    return missing


def _good(reply: Reply, room: Room) -> None:
    with_judge = options(Serving(reply).url)
    works(room, "eval", "model", "-c", "small.yaml", *with_judge, never=re.escape(KEY))


def _guard(words: list[str], room: Room) -> None:
    """A guard that says nothing that can be read."""
    make_guard(room / "guard")
    judge = f"--judges=llama-guard-3-1b={room / 'guard'}"
    outcome = command(room, *words, judge)
    if outcome.code == 0:
        raise SilentLoss(f"exit 0 without verdicts: {outcome.said[-200:]!r}")
    if "Traceback" in outcome.err or outcome.err.count("\n") != 1:
        raise Broken(outcome.err[-300:])


def _address(address: str, names: str, room: Room) -> None:
    stops(
        room, *MODEL_COMMANDS["eval"][:1], "model", *options(address), names=names, never="secret"
    )


ADDRESSES = {
    "no scheme": "localhost:8000",
    "another scheme": "ftp://localhost/v1",
    "a user": "http://me:secret@localhost/v1",
    "a key in the query": "http://localhost/v1?api_key=secret",
    "a key in the path": "http://localhost/sk-secret0123456789abcdef0123456789/v1",
    "a key in the fragment": "http://localhost/v1#token=secret",
    "no host": "http:///v1",
    "a port of words": "http://localhost:port/v1",
    "a port out of range": "http://localhost:99999/v1",
    "nobody there": "http://127.0.0.1:9/v1",
    "a space": "http://local host/v1",
    "a control character": "http://local\x1bhost/v1",
    "nothing": "",
}
VARIABLES = {
    "a key": "sk-secret0123456789abcdef",
    "a key of the hub": "hf_secret0123456789abcdefghij",
    "a space": "MY KEY secret",
    "a key with dashes": "secret-0123-4567",
}


def _variable(name: str, room: Room) -> None:
    given = options("http://127.0.0.1:9/v1")
    given = [option for option in given if "api_key_env" not in option]
    key = f"--set=evaluate.endpoint.api_key_env={json.dumps(name)}"
    stops(room, "eval", "model", *given, key, names="api_key_env", never="secret")


def cases() -> Iterator[Case]:
    """Every behavior of a server, for a model and for a run."""
    for name, reply in BAD.items():
        yield Case(KIND, f"eval / {name}", partial(_evaluates, reply))
        yield Case(KIND, f"run / {name}", partial(_runs, reply), seconds=120)
    for name, reply in GOOD.items():
        yield Case(KIND, f"right: {name}", partial(_good, reply))
    for name, words in {
        "eval": ["eval", "model", "-c", "small.yaml"],
        "run": ["run", "model", "-c", "small.yaml", "-o", "new"],
    }.items():
        yield Case(KIND, f"{name} / a guard that says nothing", partial(_guard, words))
    for name, address in ADDRESSES.items():
        yield Case(KIND, f"address / {name}", partial(_address, address, r"base_url|server|127\.0"))
    for name, variable in VARIABLES.items():
        yield Case(KIND, f"variable / {name}", partial(_variable, variable))
