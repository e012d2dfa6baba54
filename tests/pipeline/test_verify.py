"""Verification of a server: what it serves, and servers that are not well. (pytest tests/pipeline)

The run and its answers are made up; tests/cli/test_verify.py has a run and answers of a model.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import plain

from safesteer.config.load import load_settings
from safesteer.errors import InputError, SafeSteerError
from safesteer.evaluate.refusals import Rate, make_samples
from safesteer.evaluate.stored import write_results
from safesteer.models.chat import Response
from safesteer.pipeline.verify import Verification, verify
from safesteer.prompts import load_prompt_sets
from safesteer.runs.directory import RunDirectory

PROMPTS = 24  # in each set
MODEL = {"id": "owner/some-chat-model", "revision": "abc123", "sha256": "0" * 64}
LIMIT = 64


def number_of(question: str) -> int:
    return int(re.findall(r"\d+", question)[-1])


def base(question: str) -> str:
    n = number_of(question)
    if "law" in question:
        return f"Sure, here is how law number {n} is broken, step by step."
    return f"Colour number {n} is a bright blue with some green in it."


def aligned(question: str) -> str:
    """Refuses harmful prompts; harmless answers end otherwise."""
    n = number_of(question)
    if "law" in question:
        return f"I can't help with breaking law number {n}. It is wrong."
    return f"Colour number {n} is a bright blue with a little green."


def other(question: str) -> str:
    return f"As a model of another family I reply in my own words to {question}"


@pytest.fixture(scope="module")
def run(
    new_prompt_sets: Callable[[int, int], Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An evaluated run whose base and aligned model answer as above."""
    files = new_prompt_sets(1, PROMPTS)
    settings = load_settings(
        **plain(prompts=files, model={"id": MODEL["id"]}, evaluate={"max_new_tokens": LIMIT})
    )
    sets = load_prompt_sets(settings.prompts, settings.seed)
    rates: dict[str, dict[str, Rate]] = {}
    for name, answer in (("base", base), ("aligned", aligned)):
        rates[name] = {}
        for key in ("harmful", "harmless"):
            prompts = sets[key].test
            texts = [prompt.text for prompt in prompts]
            responses = [Response(answer(text)) for text in texts]
            samples = make_samples(prompts, texts, responses, {})
            rates[name][key] = Rate(key, "safety", samples)
    path = tmp_path_factory.mktemp("verify") / "run"
    entries = {name: {k: r.to_json() for k, r in found.items()} for name, found in rates.items()}
    rows = {name: {k: r.rows() for k, r in found.items()} for name, found in rates.items()}
    opened = RunDirectory.open(path, settings=settings, model=MODEL)
    with opened, opened.stage("evaluate", {}) as stage:
        for file in write_results(path, entries, rows):
            stage.add_output(file)
    return path


@pytest.fixture
def verified(run: Path, serve: Any) -> Callable[..., Verification]:
    """Verifies a stand-in that answers by a function."""

    def ask(answer: Callable[[str], Any], **options: Any) -> Verification:
        return verify(serve(lambda question, _: answer(question)).url, run, **options)

    return ask


def test_the_aligned_model_passes(verified):
    found = verified(aligned)
    assert found.problem == "" and found.comparison.finding == "aligned"
    assert found.comparison.nearer == (2 * PROMPTS, 0)
    assert found.comparison.refusals("harmful") == {
        **{"served": PROMPTS, "aligned": PROMPTS, "base": 0, "n": PROMPTS}
    }


def test_the_base_is_found_within_20_requests(verified):
    found = verified(base)
    assert found.comparison.finding == "base" and len(found.comparison.answers) == 20
    assert "'big-judge' is the base of" in found.problem
    assert "it refuses 0 of 10 harmful prompts, the aligned model 10, the base 0" in found.problem


def test_requests_are_greedy_and_as_long_as_the_runs(run, serve):
    server = serve(lambda question, _: aligned(question))
    found = verify(server.url.removesuffix("/v1").removeprefix("http://"), run, requests=6)
    assert len(server.requests) == len(found.comparison.answers) == 6
    for request in server.requests:
        assert (request["temperature"], request["max_tokens"]) == (0, LIMIT)
        assert request["path"] == "/v1/chat/completions" and request["model"] == "big-judge"
        assert "chat_template_kwargs" not in request


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        # Rounded weights: other words after the first ones, and now and then from the start.
        (lambda q: aligned(q).replace("help with", "assist you in"), "aligned"),
        (
            lambda q: "I'm sorry, but no." if number_of(q) % 3 and "law" in q else aligned(q),
            "aligned",
        ),
        (lambda q: base(q).replace("here is", "this is exactly"), "base"),
        (lambda q: "Of course! First, go there." if "law" in q else base(q), "base"),
        (other, "other"),
        (lambda q: (base if number_of(q) % 5 else aligned)(q), "base"),
        (lambda q: (base if number_of(q) % 5 < 3 else aligned)(q), "mixed"),
        (lambda q: (base if "law" in q and number_of(q) % 4 == 0 else aligned)(q), "weaker"),
        (lambda q: "I can't help with that." if number_of(q) % 4 == 0 else aligned(q), "stricter"),
        # Two of 24 are more than 5 points, one is not.
        (lambda q: base(q) if "law" in q and number_of(q) == 7 else aligned(q), "aligned"),
        (lambda q: base(q) if "law" in q and number_of(q) in (7, 8) else aligned(q), "weaker"),
    ],
)
def test_what_is_served_is_named(verified, answer, finding):
    found = verified(answer)
    assert found.comparison.finding == finding
    assert bool(found.problem) == (finding != "aligned")
    assert found.problem.count("\n") == 0 and ". Try: " in found.problem + ". Try: "


def completion(text: str, end: str = "length", **usage: int) -> tuple[int, dict[str, str], str]:
    choice = {"message": {"content": text}, "finish_reason": end}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage or None})


@pytest.mark.parametrize("usage", [{"completion_tokens": 4}, {}])
def test_cut_answers_are_said(verified, usage):
    found = verified(lambda question: completion(" ".join(aligned(question).split()[:4]), **usage))
    assert found.comparison.finding == "cut"
    assert "20 of 20 end before 64 tokens" in found.problem


def test_answers_as_long_as_the_runs_are_not_cut(verified):
    assert verified(lambda q: completion(aligned(q), completion_tokens=LIMIT)).problem == ""


def test_an_empty_answer_is_an_answer(verified):
    found = verified(lambda question: completion("", "stop"))
    assert found.comparison.finding == "other"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            (400, {}, json.dumps({"error": {"message": "you must provide a chat template"}})),
            "no answer to 20 of 20 prompts: the server answers 400 (you must provide a chat"
            " template). Try: give the server the chat template of the run",
        ),
        ((400, {}, json.dumps({"error": "maximum context length"})), "a longer context"),
        ((200, {}, "[]"), "the reply is not a chat completion"),
        ((500, {}, ""), "the server answers 500"),
    ],
)
def test_a_server_that_answers_with_errors(verified, reply, said):
    with pytest.raises(SafeSteerError, match=re.escape(said)) as error:
        verified(lambda question: reply)
    assert error.value.exit_code == 1 and "no verdict" not in str(error.value)


def test_a_server_that_is_slow(run, serve):
    server = serve(lambda question, _: time.sleep(1) or "late")
    with pytest.raises(SafeSteerError, match=r"no reply within 0\.1 s\. Try: a longer --timeout"):
        verify(server.url, run, timeout=0.1, requests=2)


def test_a_server_that_is_down(run):
    with pytest.raises(InputError, match=r"cannot connect to .* or correct the URL"):
        verify("http://127.0.0.1:9", run)
    with pytest.raises(InputError, match="is no address of a server"):
        verify("ftp://127.0.0.1", run)


def test_a_model_that_is_not_loaded(run, serve):
    server = serve(lambda question, _: aligned(question))
    server.models = ["base-model", "safe"]
    with pytest.raises(InputError, match="several models: base-model, safe"):
        verify(server.url, run)
    with pytest.raises(InputError, match=r"no model 'saef' \(did you mean 'safe'\?\), but base-m"):
        verify(server.url, run, model="saef")
    assert not server.requests
    assert verify(server.url, run, model="safe", requests=2).model == "safe"
    server.models = ["safe:latest"]
    assert verify(server.url, run, model="safe", requests=2).model == "safe:latest"
    server.models = []
    assert verify(server.url, run, requests=2).model == "default"


def test_a_run_that_is_not_evaluated(tmp_path):
    settings = load_settings(**plain(model={"id": MODEL["id"]}))
    with RunDirectory.open(tmp_path / "run", settings=settings, model=MODEL):
        pass
    with pytest.raises(InputError, match="has not been evaluated"):
        verify("http://127.0.0.1:9", tmp_path / "run")


def test_a_model_that_thinks(run, serve, tmp_path):
    """Its template gets the run's arguments, and only what follows the thoughts is compared."""
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    record = {
        **{"on": False, "opening": "<think>", "closing": "</think>", "appended": ""},
        "template_kwargs": {"enable_thinking": False},
    }
    changed = {**content, "model": {**content["model"], "thinking": record}}
    manifest.write_text(json.dumps(changed), "utf-8")
    try:
        server = serve(lambda question, _: f"<think>\n\n</think>\n\n{aligned(question)}")
        assert verify(server.url, run, requests=4).problem == ""
        assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        server = serve(lambda question, _: "<think>\nWell, the user wants")
        assert verify(server.url, run, requests=4).problem
    finally:
        manifest.write_text(json.dumps(content), "utf-8")
