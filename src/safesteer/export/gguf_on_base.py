"""GGUF files that a tool puts on the user's own base, read back on a base that is known.

The file is read with llama.cpp's `gguf` package and applied by hooks on the base in float32. An
adapter is also loaded by llama.cpp itself, onto the base as a GGUF file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safesteer.errors import InputError
from safesteer.export import gguf_file, llama_cpp
from safesteer.export.gguf_tokenizer import split_name
from safesteer.export.source import Source
from safesteer.export.verify import Candidate

# A forward hook: (module, inputs, output) to the edited output.
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def read_on_base(
    source: Source,
    model: Any,  # the base
    hooks: Mapping[nn.Module, Hook],  # what the file does to outputs of its modules
    tokenizer: Any,
    adapter: Path | None = None,  # the file, where llama.cpp's server takes it beside a model
) -> Candidate:
    """The base with the edits of a file."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with ExitStack() as stack:
            for module, hook in hooks.items():
                stack.callback(module.register_forward_hook(hook).remove)
            return model(ids).logits

    if adapter is None or not llama_cpp.is_installed():
        return Candidate(logits, tokenizer)
    try:
        split = split_name(source.tokenizer, source.base if source.kind == "gguf" else None)
    except InputError:  # the base cannot be written, but its user may have it in GGUF
        return Candidate(logits, tokenizer)

    def ask(prompts: Sequence[str]) -> list[llama_cpp.Answer]:
        with tempfile.TemporaryDirectory(dir=adapter.parent) as folder:
            base = Path(folder) / "base.gguf"
            gguf_file.write_model(source, model, base, torch.float32, split)
            return llama_cpp.ask(base, prompts, adapter)

    return Candidate(logits, tokenizer, ask)
