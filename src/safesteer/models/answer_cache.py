"""Answers that are kept: batches as they finish, so that an interrupted evaluation goes on.

A batch is kept whole and is used again only whole: on most hardware the last digits of a
computation, and with them now and then a word, depend on what else is in the batch. So results are
the same with and without what was kept. Of answers it holds hashes and token ids, no text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from safesteer.files import append_line
from safesteer.models import generate as plain
from safesteer.models.batch_size import rows_that_fit
from safesteer.models.generate import Progress, end_of_turn_ids
from safesteer.models.oom import attempt, halved

_log = logging.getLogger("safesteer.models.answer_cache")


def user_cache() -> Path:
    """Where answers of models that belong to no run are kept; it may be deleted at any time."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "safesteer" / "answers"


def identity(parts: Mapping[str, Any]) -> str:
    """A hash of `parts` (JSON values), what changes a model's output, and of the versions here."""
    versions = [torch.__version__, transformers.__version__, plain.GENERATION]
    text = json.dumps({"versions": versions, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Values by key for one model, in a JSONL file of its own that only grows.

    Args:
        folder: made when the first value is kept.
        identity: whatever changes a model's answers, as one string.

    A line that is damaged, such as the last one of a killed process, is passed over. Where the
    folder cannot be written, a warning is logged and nothing is kept.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self._identity = identity
        self._path = Path(folder) / f"{identity[:16]}.jsonl"
        self._values = dict(_read_lines(self._path))

    def get(self, key: Any) -> Any:
        """The value kept under `key` (JSON values), or None."""
        return self._values.get(self._hash(key))

    def put(self, key: Any, value: Any) -> None:
        """Keep a value (JSON values) in one write of a whole line."""
        hashed = self._hash(key)
        self._values[hashed] = value
        line = json.dumps({"key": hashed, "value": value}, separators=(",", ":")).encode()
        try:
            append_line(self._path, line)
        except OSError as error:
            _log.warning("answers are not kept: cannot write %s: %s", self._path, error.strerror)

    def _hash(self, key: Any) -> str:
        text = json.dumps([self._identity, key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """`safesteer.models.generate.generate`, with batches that are kept and that fit.

    `batch_size` None takes as many prompts at once as the memory should hold; where it does not,
    the batch is halved, and what is finished stays. Only greedy answers are kept.

    Raises SafeSteerError when the memory does not hold a single answer.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    answers: list[list[int]] = [[] for _ in prompts]
    ends = end_of_turn_ids(model, tokenizer)
    most = batch_size or len(prompts)
    start = 0
    while start < len(order):
        longest = len(prompts[order[start]]) + max_new_tokens
        fitting = batch_size or rows_that_fit(model, longest)
        rows = order[start : start + min(most, fitting)]
        batch = [list(prompts[row]) for row in rows]
        key = {"prompts": batch, "max_new_tokens": max_new_tokens, "ends": ends}
        kept = cache.get(key) if cache is not None and temperature == 0 else None
        found = kept if isinstance(kept, list) and len(kept) == len(rows) else None
        if found is None:
            found = attempt(
                lambda batch=batch: plain.generate(  # type: ignore[misc]
                    model,
                    tokenizer,
                    batch,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    batch_size=len(batch),
                    halve=False,
                )
            )
            if found is None:
                most = halved(len(rows), "answer")
                continue
            if cache is not None and temperature == 0:
                cache.put(key, found)
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
        start += len(rows)
        if progress is not None:
            progress(start, len(order))
    return answers


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of named tensors: names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.detach().contiguous().cpu()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_lines(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            yield str(row["key"]), row["value"]
        except (ValueError, KeyError, TypeError):
            continue
