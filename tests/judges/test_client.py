"""The client, through the endpoint judge, against a server on this machine."""

from __future__ import annotations

import json
import logging
import re
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, PAIRS, graded, settings_for

from safesteer.errors import InputError, SafeSteerError
from safesteer.judges import client, make_judge


def test_a_good_server_is_asked_in_the_right_form(serve):
    """Path, model, temperature 0, the key in the header; verdicts in the order of the pairs."""

    def answer(question: str, number: int) -> str:
        time.sleep(0.02 * (4 - number))  # later requests are answered first
        if "I can't help" in question:
            return graded(1, 1, 1)
        return graded(0, 5, 4) if "tension wrench" in question else graded(0, 1, 2)

    server = serve(answer)
    seen = []
    judge = make_judge("endpoint", settings_for(server, concurrency=2))
    verdicts = judge.judge(PAIRS, lambda done, total: seen.append((done, total)))
    assert [(v.unsafe, v.refused, v.score) for v in verdicts] == [
        (False, True, 0.0),
        (True, False, 0.875),
        (False, False, 0.125),
    ]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for request, headers in zip(server.requests, server.headers, strict=True):
        assert request["path"] == "/v1/chat/completions"
        assert (request["model"], request["temperature"]) == ("big-judge", 0)
        assert headers["Authorization"] == f"Bearer {KEY}"


def test_requests_run_at_once_but_no_more_than_allowed(serve):
    """Concurrency is a bound, and it is used."""

    def answer(question: str, number: int) -> str:
        time.sleep(0.1)
        return graded()

    server = serve(answer)
    judge = make_judge("endpoint", settings_for(server, concurrency=3))
    judge.judge([("Q?", f"Answer {number}.") for number in range(10)])
    assert 1 < server.most_at_once <= 3


def test_equal_answers_are_asked_once(serve):
    """Two benchmarks may share prompts, and refusals are often word for word the same."""
    server = serve(lambda question, number: graded())
    verdicts = make_judge("endpoint", settings_for(server)).judge([PAIRS[0]] * 5)
    assert len(server.requests) == 1
    assert [verdict.unsafe for verdict in verdicts] == [True] * 5


def test_a_server_without_a_key_is_asked_without_one(serve, monkeypatch):
    """A local server needs none, so none is demanded."""
    monkeypatch.delenv("JUDGE_KEY")
    server = serve(lambda question, number: graded())
    assert make_judge("endpoint", settings_for(server)).judge(PAIRS[:1])[0].unsafe is True
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(serve, status):
    """Busy at first, then good."""
    server = serve(lambda q, number: graded() if number > 2 else (status, {}, "busy"))
    verdicts = make_judge("endpoint", settings_for(server)).judge(PAIRS[:1])
    assert verdicts[0].unsafe is True
    assert len(server.requests) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(serve, form):
    """The server says how long to wait, in seconds or as a date, and is not asked before."""
    times = []

    def answer(question: str, number: int) -> Any:
        times.append(time.time())
        later = "1.2" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return graded() if number > 1 else (429, {"Retry-After": later}, "")

    assert make_judge("endpoint", settings_for(serve(answer))).judge(PAIRS[:1])[0].unsafe is True
    assert times[1] - times[0] >= 0.95  # a date has whole seconds


def test_a_server_that_wants_hours_is_not_waited_for(serve):
    """No verdict instead."""
    server = serve(lambda q, number: (429, {"Retry-After": "7200"}, ""))
    verdict = make_judge("endpoint", settings_for(server)).judge(PAIRS[:1])[0]
    assert verdict.unsafe is None
    assert "429" in verdict.note
    assert len(server.requests) == 1


def test_a_server_that_stays_broken_gives_no_verdict(serve):
    """500 after all tries: nothing is called safe, and the others keep their verdicts."""
    server = serve(
        lambda question, number: graded() if "Blue" in question else (500, {}, "<html>oops")
    )
    verdicts = make_judge("endpoint", settings_for(server, retries=1)).judge(PAIRS)
    assert [verdict.unsafe for verdict in verdicts] == [None, None, True]
    assert verdicts[0].note == "no verdict: the server answers 500"
    assert len(server.requests) == 5


def test_a_slow_server_gives_no_verdict(serve):
    """The timeout holds for each try."""

    def answer(question: str, number: int) -> str:
        time.sleep(1.0)
        return graded()

    server = serve(answer)
    judge = make_judge("endpoint", settings_for(server, timeout=0.2, retries=1))
    verdict = judge.judge(PAIRS[:1])[0]
    assert verdict.unsafe is None
    assert verdict.note == "no verdict: no reply within 0.2 s"
    assert len(server.requests) == 2


def test_a_dripping_server_gives_no_verdict_in_time(serve, monkeypatch):
    """One byte of the reply comes every 20 ms: the limit is that of the whole request."""

    def drip(self: Any, status: int, headers: dict[str, str], body: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            pass

    server = serve(lambda q, n: graded())
    monkeypatch.setattr(server.http.RequestHandlerClass, "_send", drip)
    judge = make_judge("endpoint", settings_for(server, timeout=0.2, retries=4))
    start = time.monotonic()
    verdicts = judge.judge([("Q?", f"Answer {number}.") for number in range(200)])
    # The first request alone, then as many as run at once, each tried twice; then no more but
    # those that began before the last of them failed.
    assert time.monotonic() - start < 20 * 0.2
    assert {verdict.note for verdict in verdicts} == {"no verdict: no reply within 0.2 s"}
    assert len(server.requests) <= 2 + 2 * 15


def test_a_silent_server_is_not_asked_for_every_answer(serve):
    """Until the next command, or as long as no answer comes in between."""

    def silent(question: str, number: int) -> str:
        if "Answer 3." in question:
            return graded()
        time.sleep(0.15)
        return graded()

    server = serve(silent)
    pairs = [("Q?", f"Answer {number}.") for number in range(30)]
    judge = make_judge("endpoint", settings_for(server, retries=0, concurrency=1, timeout=0.1))
    assert [verdict.unsafe for verdict in judge.judge(pairs[1:])].count(None) == 28
    assert len(server.requests) == 6
    server.answer = lambda q, n: graded()
    again = make_judge("endpoint", settings_for(server)).judge(pairs)
    assert all(verdict.unsafe for verdict in again)


def test_a_server_that_answers_with_errors_is_asked_for_every_answer(serve):
    """It may object to some of them only."""
    server = serve(lambda q, n: (500, {}, "") if n < 12 else graded())
    judge = make_judge("endpoint", settings_for(server, retries=0, concurrency=1))
    verdicts = judge.judge([("Q?", f"Answer {number}.") for number in range(12)])
    assert [verdict.unsafe for verdict in verdicts] == [None] * 11 + [True]


def test_an_unusable_reply_is_asked_again(serve, tmp_path):
    """Kept replies are those with a verdict, also where an older version kept others."""
    server = serve(lambda q, n: "I would rather chat.")
    settings = settings_for(server)
    assert make_judge("endpoint", settings, cache_dir=tmp_path).judge(PAIRS[:2])[0].unsafe is None
    server.answer = lambda q, n: graded()
    again = make_judge("endpoint", settings, cache_dir=tmp_path).judge(PAIRS[:2])
    assert [verdict.unsafe for verdict in again] == [True, True]
    assert len(server.requests) == 4


def test_a_reply_shows_no_control_characters(serve):
    """In its error, and in a reply without grades."""
    text = json.dumps({"error": {"message": "\x1b[2Jgone\u202e"}})
    server = serve(lambda q, n: (400, {}, text) if "wrench" in q else "\x1b[2Jgone")
    notes = [v.note for v in make_judge("endpoint", settings_for(server)).judge(PAIRS[:2])]
    assert all(note.isprintable() and "gone" in note for note in notes)
    assert "\\x1b[2Jgone" in notes[0] and "\\x1b[2Jgone\\u202e" in notes[1]


@pytest.mark.parametrize(
    "body",
    [
        "<html>not JSON</html>",
        "",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {}}]}',
        '{"choices": [{"message": {"content": null}}]}',
        '{"choices": [{"message": {"content": ["safe"]}}]}',
        '{"choices": [{"message": {"content": "  "}}]}',
    ],
)
def test_a_reply_that_is_no_completion_gives_no_verdict(serve, body):
    """Garbage and missing fields, without a second try."""
    server = serve(lambda question, number: (200, {}, body))
    verdict = make_judge("endpoint", settings_for(server)).judge(PAIRS[:1])[0]
    assert verdict.unsafe is None
    assert verdict.note.startswith("no verdict: the reply is ")
    assert len(server.requests) == 1


def test_a_request_that_the_server_refuses_gives_no_verdict(serve):
    """A content filter objects to one answer, not to the others."""
    filtered = json.dumps({"error": {"message": "content filter", "code": "content_filter"}})
    server = serve(lambda q, number: (400, {}, filtered) if "wrench" in q else graded())
    verdicts = make_judge("endpoint", settings_for(server)).judge(PAIRS)
    assert [verdict.unsafe for verdict in verdicts] == [True, None, True]
    assert verdicts[1].note == "no verdict: the server answers 400 (content filter)"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "part"),
    [
        (401, r"key in the environment variable JUDGE_KEY is not accepted"),
        (403, r"key in the environment variable JUDGE_KEY is not accepted"),
        (404, r"no model 'big-jugde' \(did you mean 'big-judge'\?\)"),
        (405, r"check evaluate\.endpoint\.base_url"),
        (302, r"check evaluate\.endpoint\.base_url"),
    ],
)
def test_what_no_request_can_pass_fails_at_once(serve, status, part):
    """Wrong key, unknown model, wrong address: one line after one request."""
    server = serve(lambda q, n: (status, {"Location": "http://127.0.0.1:9/elsewhere"}, "{}"))
    judge = make_judge("endpoint", settings_for(server, model="big-jugde"))
    with pytest.raises(InputError, match=part) as error:
        judge.judge(PAIRS)
    assert "\n" not in str(error.value)
    assert len(server.requests) == 1


def test_a_key_that_stops_working_ends_the_run(serve):
    """Also in the middle, with what was answered kept and nothing asked for long."""
    server = serve(lambda q, number: graded() if number < 3 else (401, {}, "{}"))
    judge = make_judge("endpoint", settings_for(server, concurrency=1))
    with pytest.raises(InputError, match="401"):
        judge.judge([("Q?", f"Answer {number}.") for number in range(40)])
    assert len(server.requests) < 6


def test_a_server_that_was_never_there_is_an_error(serve):
    """The first request cannot connect: the address is wrong or nothing runs there."""
    server = serve(lambda question, number: graded())
    server.close()
    with pytest.raises(InputError) as error:
        make_judge("endpoint", settings_for(server)).judge(PAIRS)
    message = str(error.value)
    assert server.url in message
    assert "base_url" in message
    assert "\n" not in message


def test_a_server_that_goes_down_gives_no_verdict(serve, tmp_path):
    """What it had answered stays; the rest is no verdict, and is asked when it is back."""
    server = serve(lambda question, number: graded())
    judge = make_judge("endpoint", settings_for(server), cache_dir=tmp_path)
    assert judge.judge(PAIRS[:1])[0].unsafe is True
    server.close()
    verdicts = judge.judge(PAIRS)
    assert [verdict.unsafe for verdict in verdicts] == [True, None, None]
    assert verdicts[1].note.startswith("no verdict: cannot connect (")


@pytest.mark.parametrize("url", [f"http://user:{KEY}@host/v1", f"http://host/v1?api-key={KEY}"])
def test_an_address_that_holds_a_key_is_no_setting(url):
    """It would be written into the run; the error does not quote it."""
    with pytest.raises(ValueError, match="api_key_env") as error:
        settings_for(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_end_in_a_slash_or_be_the_whole_one(serve, path):
    """The three ways in which people write it."""
    server = serve(lambda question, number: graded())
    make_judge("endpoint", settings_for(server.url.removesuffix("/v1") + path)).judge(PAIRS[:1])
    assert server.requests[0]["path"] == "/v1/chat/completions"


def test_a_key_that_cannot_be_one_is_not_quoted(serve, monkeypatch):
    """A line break inside it would be a broken header, and the library's error would show it."""
    server = serve(lambda question, number: graded())
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nsecond line")
    with pytest.raises(InputError, match="JUDGE_KEY holds no key") as error:
        make_judge("endpoint", settings_for(server))
    assert KEY not in str(error.value)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")  # as `$(cat file)` in quotes leaves it
    make_judge("endpoint", settings_for(server)).judge(PAIRS[:1])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_an_interrupted_evaluation_goes_on(serve, tmp_path):
    """Replies are on disk as they come; a second judge asks only for what is missing."""
    server = serve(lambda question, number: graded())
    make_judge("endpoint", settings_for(server), cache_dir=tmp_path).judge(PAIRS[:2])
    again = make_judge("endpoint", settings_for(server), cache_dir=tmp_path)
    assert [verdict.unsafe for verdict in again.judge(PAIRS)] == [True] * 3
    assert len(server.requests) == 3
    other = make_judge("endpoint=other", settings_for(server), cache_dir=tmp_path)
    other.judge(PAIRS[:1])
    assert len(server.requests) == 4, "another model's reply is another reply"


def test_a_fresh_run_forgets_the_replies(serve, tmp_path):
    """Its judges are made before the folder is emptied."""
    server = serve(lambda question, number: graded())
    make_judge("endpoint", settings_for(server), cache_dir=tmp_path).judge(PAIRS)
    judge = make_judge("endpoint", settings_for(server), cache_dir=tmp_path)
    (tmp_path / client.CACHE_FILE).unlink()
    judge.judge(PAIRS)
    assert len(server.requests) == 6


def test_a_half_written_line_is_asked_again(serve, tmp_path):
    """A kill in the middle of a line costs that line, and neither the ones before nor the next."""
    server = serve(lambda question, number: graded())
    make_judge("endpoint", settings_for(server, concurrency=1), cache_dir=tmp_path).judge(PAIRS)
    path = tmp_path / client.CACHE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    second = make_judge("endpoint", settings_for(server), cache_dir=tmp_path)
    assert [verdict.unsafe for verdict in second.judge(PAIRS)] == [True] * 3
    assert len(server.requests) == 4
    make_judge("endpoint", settings_for(server), cache_dir=tmp_path).judge(PAIRS)
    assert len(server.requests) == 4
    path.write_bytes(b'\x00\xff\n[]\n{"request": 1}\n"x"\n' + whole)
    make_judge("endpoint", settings_for(server), cache_dir=tmp_path).judge(PAIRS)
    assert len(server.requests) == 4


def test_a_cache_that_cannot_be_written_is_one_line(serve, tmp_path):
    """A file where the folder should be."""
    (tmp_path / "taken").write_text("")
    server = serve(lambda question, number: graded())
    judge = make_judge("endpoint", settings_for(server), cache_dir=tmp_path / "taken")
    with pytest.raises(SafeSteerError, match="cannot write"):
        judge.judge(PAIRS[:1])


def all_errors(error: BaseException | None) -> str:
    """The messages of an exception and of all that it came from."""
    text = ""
    while error is not None:
        text += f"{error!r}\n{error.args}\n"
        error = error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 418, 429, 500])
def test_the_key_is_in_no_file_message_note_or_log(serve, tmp_path, caplog, capfd, status):
    """Even when the server quotes it in its error, or the model in its reply."""
    caplog.set_level(logging.DEBUG)
    quoted = json.dumps({"error": {"message": f"key {KEY} may not do this, Bearer {KEY}"}})
    server = serve(
        lambda q, number: (
            f"Your key is {KEY}. {graded()}" if status == 200 else (status, {}, quoted)
        )
    )
    text = ""
    try:
        judge = make_judge("endpoint", settings_for(server, retries=1), cache_dir=tmp_path)
        text += repr(judge.judge(PAIRS)) + repr(judge.__dict__)
    except SafeSteerError as error:
        text += all_errors(error)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    text += caplog.text + "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert bool(files) == (status == 200)
    for path in files:
        text += path.read_text()
    assert text
    assert KEY not in text
    assert not re.search(r"sk-test", text)


def test_the_folder_of_the_cache_is_made(serve, tmp_path: Path):
    """A new run directory has none yet."""
    server = serve(lambda question, number: graded())
    folder = tmp_path / "eval" / "cache"
    make_judge("endpoint", settings_for(server), cache_dir=folder).judge(PAIRS[:1])
    rows = [json.loads(line) for line in (folder / client.CACHE_FILE).read_text().splitlines()]
    assert [set(row) for row in rows] == [{"request", "model", "reply"}]
