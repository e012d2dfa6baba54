"""A cache of generated batches on disk, so that an interrupted evaluation resumes.

A batch is reused only as a whole: on most hardware the last digits of a computation, and with them
now and then a word, depend on the rest of the batch. Results are the same with and without the
cache. It holds hashes and token ids, no text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from safesteer.files import append_line, read_lines

_log = logging.getLogger(__name__)

# Raise this when `safesteer.models.generate` changes the answers.
GENERATION = 2


def user_cache(kind: str = "answers") -> Path:
    """The user's folder for what is kept outside any run; it may be deleted at any time.

    `kind` is "answers" of models, or "models" dequantized from GGUF files.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "safesteer" / kind


def identity(parts: Mapping[str, Any]) -> str:
    """A hash of all that changes a model's answers: `parts` (JSON values) and library versions."""
    versions = [torch.__version__, transformers.__version__, GENERATION]
    return _hash({"versions": versions, **parts})


class Cache:
    """Values of one model by key, in an append-only JSONL file.

    Damaged lines, such as the last one of a killed process, are skipped. If the folder cannot be
    written, a warning is logged and nothing is kept. `identity` stands for the model.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self._identity = identity
        self._path = Path(folder) / f"{identity[:16]}.jsonl"
        self._values: dict[str, Any] = {}
        with suppress(OSError):
            for row in read_lines(self._path):
                with suppress(KeyError, TypeError):
                    self._values[str(row["key"])] = row["value"]

    def get(self, key: Any) -> Any:
        """The value of `key` (JSON values), or None."""
        return self._values.get(_hash([self._identity, key]))

    def put(self, key: Any, value: Any) -> None:
        """Store a value (JSON values) in one write of a whole line."""
        hashed = _hash([self._identity, key])
        self._values[hashed] = value
        line = json.dumps({"key": hashed, "value": value}, separators=(",", ":")).encode()
        try:
            append_line(self._path, line)
        except OSError as error:
            _log.warning("answers are not kept: cannot write %s: %s", self._path, error.strerror)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of named tensors: names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.detach().contiguous().cpu()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
