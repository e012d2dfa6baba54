"""Log-likelihood of reference solutions: how probable a model finds right answers.

    python -m bench.evidence solutions RUN --data-dir DIR [--limit N]

A model as small as the built-in one solves no problem of GSM8K or HumanEval, before or after, so
its score changes by luck alone. The probability of reference solutions changes with every weight,
and is compared on the same problems. Prints the mean probability of a token of the solution for the
base and the aligned model of a finished run, with the paired difference. `bench.methods` measures
all its students by it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.tables import table_head, table_row
from safesteer.errors import InputError
from safesteer.evaluate.statistics import mean_interval, paired_difference
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import row_by_row
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory

Problem = tuple[str, str]  # (what is asked, the answer)


def _gsm8k(row: dict[str, Any]) -> Problem:
    return row["question"], re.sub(r"<<.*?>>", "", row["answer"])  # the calculator's notes


def _humaneval(row: dict[str, Any]) -> Problem:
    return f"Complete this Python function:\n\n{row['prompt']}", row["canonical_solution"]


SOLUTIONS = {
    "gsm8k-solutions": ("gsm8k/test.jsonl", _gsm8k),
    "humaneval-solutions": ("humaneval/HumanEval.jsonl", _humaneval),
}


def read_problems(name: str, data_dir: str | Path | None, limit: int | None) -> list[Problem]:
    """The first `limit` problems of one of SOLUTIONS, or all if it is None.

    Raises:
        InputError: its file is missing.
    """
    file, problem = SOLUTIONS[name]
    path = Path(data_dir or ".") / file
    if not path.is_file():
        raise InputError(f"{name} needs {path}. Try: --data-dir with the folder that holds {file}")
    lines = path.read_text("utf-8").splitlines()[:limit]
    return [problem(json.loads(line)) for line in lines]


@torch.no_grad()
def solution_probabilities(
    model: ChatModel, runner: Any, problems: Sequence[Problem], batch_size: int = 8
) -> list[float]:
    """Geometric mean of the probabilities of each solution's tokens under `runner`."""
    chat, head = model.chat.without_thinking, OutputHead.of(runner)
    asked = [chat.ids([{"role": "user", "content": question}]) for question, _ in problems]
    answers = [chat.answer_ids(answer) for _, answer in problems]

    def read(part: list[int]) -> list[float]:
        given = [answers[row] for row in part]
        states = completion_states(
            runner, [asked[row] for row in part], given, chat.tokenizer.pad_token_id, run_last=True
        )
        found = []
        for predicting, answer in zip(states, given, strict=True):
            log_p = torch.log_softmax(head.logits(predicting), dim=-1)
            known = log_p.gather(-1, torch.tensor(answer, device=log_p.device)[:, None])
            found.append(known.mean().exp().item())
        return found

    sequences = [a + b for a, b in zip(asked, answers, strict=True)]
    return row_by_row(sequences, batch_size, read, model.model.device)


def measure_solutions(model: ChatModel, runner: Any, problems: Sequence[Problem]) -> dict[str, Any]:
    """The mean of `solution_probabilities`, as an entry of eval/MODEL.json."""
    likely = solution_probabilities(model, runner, problems)
    return {
        "metric": "solution_probability",
        "value": sum(likely) / len(likely),
        "ci95": list(mean_interval(likely, share=True)),
        "n": len(likely),
        "judge": None,
        "kind": "capability",
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", metavar="RUN")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--limit", type=int, help="take the first so many problems of each")


def run(arguments: argparse.Namespace) -> None:
    """Print one row for each of SOLUTIONS."""
    finished = RunArtifacts(RunDirectory.load(arguments.run_folder))
    problems = {
        name: read_problems(name, arguments.data_dir, arguments.limit) for name in SOLUTIONS
    }
    model = finished.model
    # Of the base first: an adapter changes its modules in place.
    before = [solution_probabilities(model, model.model, part) for part in problems.values()]
    after = [solution_probabilities(model, finished.student, part) for part in problems.values()]
    print(
        table_head("probability of a solution's token", "base", "aligned", "on the same problems")
    )
    for name, old, new in zip(problems, before, after, strict=True):
        print(table_row(name, _cell(old), _cell(new), paired_difference(old, new).words()))


def _cell(likely: list[float]) -> str:
    low, high = mean_interval(likely, share=True)
    return f"{sum(likely) / len(likely):.2%} ({low:.1%}-{high:.1%}, n {len(likely)})"
