"""How well a model knows right solutions: the probability of reference answers, token by token.

A model as small as the built-in one solves no problem of GSM8K or HumanEval, before or after; so
a score moves by luck alone. The probability of the solutions moves with every weight, and on the
same problems.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safesteer.errors import InputError
from safesteer.evaluate.statistics import mean_interval
from safesteer.models.batches import in_batches
from safesteer.models.chat import pad_left
from safesteer.models.forward import hidden_states
from safesteer.models.head import OutputHead
from safesteer.models.load import ChatModel

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
    """The first `limit` problems of one of SOLUTIONS; all of them where it is None.

    Raises InputError where its file is missing.
    """
    file, problem = SOLUTIONS[name]
    path = Path(data_dir or ".") / file
    if not path.is_file():
        raise InputError(f"{name} needs {path}: point --data-dir to the folder that holds {file}")
    lines = path.read_text("utf-8").splitlines()[:limit]
    return [problem(json.loads(line)) for line in lines]


@torch.no_grad()
def measure_solutions(
    model: ChatModel, runner: Any, problems: Sequence[Problem], batch_size: int = 8
) -> dict[str, Any]:
    """Probability of a solution's token under `runner`; an entry as of eval/*.json.

    Of each solution the geometric mean over its tokens, of these the mean over problems.
    """
    chat, head = model.chat.closed, OutputHead.of(runner)
    asked = [chat.ids([{"role": "user", "content": question}]) for question, _ in problems]
    answers = [chat.answer_ids(answer) for _, answer in problems]

    def read(part: Sequence[int]) -> list[float]:
        full = [asked[row] + answers[row] for row in part]
        ids, mask = pad_left(full, chat.tokenizer.pad_token_id, model.model.device)
        hidden = hidden_states(runner, ids, mask)
        found = []
        for row, index in enumerate(part):
            length = len(answers[index])
            log_p = torch.log_softmax(head.logits(hidden[row, -length - 1 : -1]), dim=-1)
            known = log_p.gather(-1, ids[row, -length:, None])
            found.append(known.mean().exp().item())
        return found

    order = sorted(range(len(problems)), key=lambda row: len(asked[row]) + len(answers[row]))
    likely = [value for part in in_batches(order, batch_size, read) for value in part]
    return {
        "metric": "solution_probability",
        "value": sum(likely) / len(likely),
        "ci95": list(mean_interval(likely, share=True)),
        "n": len(likely),
        "judge": None,
        "kind": "capability",
    }
