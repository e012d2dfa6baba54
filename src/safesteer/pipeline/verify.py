"""Verify a server: whether the model that it serves behaves as a run's aligned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from safesteer.config.settings import EndpointSettings
from safesteer.errors import InputError, SafeSteerError, nearest
from safesteer.evaluate.served import Answer, Comparison, Question, choose_questions
from safesteer.evaluate.stored import read_samples
from safesteer.events import Reporter
from safesteer.judges.client import ChatClient, Reply
from safesteer.prompts import load_prompt_sets
from safesteer.prompts.load import unlogged
from safesteer.runs.directory import RunDirectory

# The first requests, after which a model that is plainly another one is asked no more.
FIRST = 20
TIMEOUT = 120.0  # seconds for one reply: servers on a CPU are slow
_AT_ONCE = 4
_RETRIES = 1
_LISTED = 6  # names of models in a message


@dataclass(frozen=True)
class Verification:
    """A served model, compared with a run."""

    url: str
    model: str  # its name on the server
    run: RunDirectory
    comparison: Comparison
    served: Sequence[str] = field(default=())  # names of all models that the server lists

    @property
    def problem(self) -> str:
        """Why it does not behave as the aligned model, in one line; empty if it does."""
        return _problem(self)


def verify(
    url: str,
    run_path: str | Path,
    *,
    model: str | None = None,
    requests: int | None = None,
    timeout: float = TIMEOUT,
    reporter: Reporter | None = None,
) -> Verification:
    """Ask a server a run's held-out prompts, and compare its answers with those of the run.

    Args:
        url: address of an OpenAI-compatible server, such as http://localhost:8000.
        run_path: folder of an evaluated run.
        model: the server's name of the model or adapter; None takes the only one.
        requests: how many prompts to ask, harmful and harmless in turn; None asks all.
        timeout: seconds for one reply.

    Raises:
        InputError: no such run, server or model.
        SafeSteerError: the server left prompts without an answer.
    """
    reporter = reporter or Reporter()
    run = RunDirectory.load(run_path)
    questions = load_questions(run, requests)
    client = _client(url, run, timeout)
    served = client.models()
    client.model = _choose(served, model, client.shown_url)
    reporter.stage("verify", f"asking {client.model} at {client.shown_url}")
    comparison = Comparison(_ask(client, questions[:FIRST], run, reporter))
    if questions[FIRST:] and comparison.finding not in ("base", "other", "cut"):
        more = _ask(client, questions[FIRST:], run, reporter)
        comparison = Comparison([*comparison.answers, *more])
    return Verification(client.shown_url, client.model, run, comparison, served)


def load_questions(run: RunDirectory, requests: int | None = None) -> list[Question]:
    """The run's test prompts with the stored answers; InputError where they cannot tell."""
    if not run.output_hashes("evaluate"):
        raise InputError(f"{run.path} has not been evaluated. Try: `safesteer eval {run.path}`")
    run.check_outputs("evaluate")
    with unlogged():
        sets = load_prompt_sets(run.settings.prompts, run.settings.seed)
    samples = read_samples(run.path)
    tests = {name: found.test for name, found in sets.items()}
    questions = choose_questions(tests, samples["base"], samples["aligned"], requests)
    if not questions:
        raise InputError(
            f"{run.path}: its prompt files changed since it was evaluated. Try: the old files"
        )
    if not any(question.is_telling for question in questions):
        raise InputError(
            f"{run.path}: base and aligned model answer all {len(questions)} prompts alike, so that"
            " their answers cannot show which one is served. Try: more --requests"
        )
    return questions


def _client(url: str, run: RunDirectory, timeout: float) -> ChatClient:
    address = url if "://" in url else f"http://{url}"
    if urlsplit(address).path in ("", "/"):
        address = f"{address.rstrip('/')}/v1"
    advanced = {"concurrency": _AT_ONCE, "retries": _RETRIES, "timeout": timeout}
    try:
        settings = EndpointSettings(base_url=address, advanced=advanced)
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InputError(f"{url} is no address of a server: {problem}") from None
    body: dict[str, Any] = {"max_tokens": run.settings.evaluate.max_new_tokens}
    # As the run's own prompts were rendered: for most models, with thinking off.
    kwargs = _thinking(run).get("template_kwargs") or run.settings.model.template_kwargs
    if kwargs:
        body["chat_template_kwargs"] = kwargs
    return ChatClient(settings, "default", body=body, address="the URL")


def _choose(served: Sequence[str], model: str | None, url: str) -> str:
    """The name of the model to ask for; InputError if it is not loaded, or one of several."""
    names = _listed(served)
    if model is None:
        if len(served) > 1:
            raise InputError(
                f"{url} serves several models: {names}. Try: --model NAME; an adapter has its own"
            )
        return served[0] if served else "default"
    known = {name.removesuffix(":latest"): name for name in served} | {n: n for n in served}
    if served and model not in known:
        raise InputError(
            f"{url} serves no model '{model}'{nearest(model, served)}, but {names}. Try: one of"
            " these as --model, or load the adapter under this name (vLLM: --enable-lora"
            f" --lora-modules {model}=DIR)"
        )
    return known.get(model, model)


def _ask(
    client: ChatClient, questions: Sequence[Question], run: RunDirectory, reporter: Reporter
) -> list[Answer]:
    replies = client.complete(
        [question.prompt.messages for question in questions],
        lambda done, total: reporter.progress("answers", done, total),
    )
    _check_replies(replies, client.shown_url)
    return [_answer(*pair, run) for pair in zip(questions, replies, strict=True)]


def _check_replies(replies: Sequence[Reply], url: str) -> None:
    """Raise SafeSteerError if a prompt has no answer; an empty one is an answer."""
    missing = [reply for reply in replies if reply.text is None and not reply.end]
    if not missing:
        return
    problem = missing[0].problem.removeprefix("no verdict: ")
    advice = "the same command again"
    if "template" in problem.lower():
        advice = (
            "give the server the chat template of the run, which lies beside its weights (vLLM:"
            " --chat-template FILE; llama-server: --jinja --chat-template-file FILE)"
        )
    elif "no reply within" in problem:
        advice = "a longer --timeout"
    elif "context" in problem.lower():
        advice = "a longer context in the server's settings"
    raise SafeSteerError(
        f"{url} gave no answer to {len(missing)} of {len(replies)} prompts: {problem}."
        f" Try: {advice}"
    )


def _answer(question: Question, reply: Reply, run: RunDirectory) -> Answer:
    text, record = reply.text or "", _thinking(run)
    closing, opening = record.get("closing"), record.get("opening")
    if closing and closing in text:
        text = text.partition(closing)[2].lstrip()
    elif opening and text.lstrip().startswith(opening):
        text = ""  # it ended inside its thoughts
    cut = reply.end == "length"
    if reply.tokens is not None:
        early = cut and reply.tokens < run.settings.evaluate.max_new_tokens
    else:
        words = len(text.split())
        rows = (question.base, question.aligned)
        early = cut and any(
            row["completion"].split()[:words] == text.split()
            and len(row["completion"].split()) > words + 1
            for row in rows
        )
    return Answer(question, text, cut, early)


def _problem(found: Verification) -> str:
    comparison, run = found.comparison, found.run.path
    aligned, base = comparison.nearer
    harmful, harmless = (comparison.refusals(name) for name in ("harmful", "harmless"))
    asked = len(comparison.answers)
    names = f" (the server lists {_listed(found.served)})" if len(found.served) > 1 else ""
    who = f"{found.url}: '{found.model}'"
    refuses = (
        f"it refuses {harmful['served']} of {harmful['n']} harmful prompts, the aligned model"
        f" {harmful['aligned']}, the base {harmful['base']}"
    )
    lines = {
        "aligned": "",
        "base": f"{who} is the base of {run}, not its aligned model: {base} of {aligned + base}"
        f" answers that differ between the two are nearer to the base's, and {refuses}. Try:"
        f" --model with the name of the adapter{names}, or `safesteer export --format merged`",
        "mixed": f"{who} answers partly as the base of {run}: {base} of {aligned + base} answers"
        f" that differ are nearer to the base's, and {refuses}. Try: check that every replica of"
        " the server has the adapter",
        "other": f"{who} is neither the aligned model of {run} nor its base: only"
        f" {comparison.alike('base', 'aligned')} of {asked} answers begin as one of theirs. Try:"
        f" another --model{names}, the adapter on its own base ({found.run.settings.model.id}), or"
        " the run's chat template",
        "cut": f"{who} cuts its answers short: {sum(a.early for a in comparison.answers)} of"
        f" {asked} end before {found.run.settings.evaluate.max_new_tokens} tokens, the run's limit,"
        " with their turn unfinished. Try: a larger limit of tokens, or context, in the server",
        "weaker": f"{who} refuses less than the aligned model of {run}: {refuses}. Try: weights of"
        " more bits, such as Q8_0, or the adapter on the base that it was trained on",
        "stricter": f"{who} refuses more than the aligned model of {run}: {harmless['served']} of"
        f" {harmless['n']} harmless prompts, the aligned model {harmless['aligned']}. Try: the"
        " run's chat template and no system prompt of the server's own",
    }
    return lines[comparison.finding]


def _thinking(run: RunDirectory) -> Mapping[str, Any]:
    """The manifest's record of a model that thinks, else {}."""
    return run.manifest["model"].get("thinking") or {}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
