"""A GGUF file read by llama.cpp itself, where the package `xllamacpp` is installed.

Runs in a separate process, because its libraries and torch's conflict in one.
(echo '["Hi"]' | python -m safesteer.export.llama_cpp FILE [ADAPTER])
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safesteer.errors import SafeSteerError

PACKAGE = "xllamacpp"
INSTALL = "pip install 'safesteer[llama]'"
TOP = 20  # likeliest tokens requested
TIMEOUT = 1800.0  # seconds
_LETTER = "a"


class Answer(NamedTuple):
    """llama.cpp's reading of one prompt."""

    tokens: int  # length of the prompt in tokens
    top: dict[int, float]  # {id: log-probability} of the likeliest next tokens


def is_installed() -> bool:
    """Whether llama.cpp is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def ask(file: Path, prompts: Sequence[str], adapter: Path | None = None) -> list[Answer]:
    """llama.cpp's reading of each prompt, by a model with or without a LoRA adapter in GGUF.

    Raises SafeSteerError if it cannot read the files.
    """
    files = [str(path) for path in (file, adapter) if path is not None]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "safesteer.export.llama_cpp", *files],
            input=json.dumps(list(prompts)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        rows = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        raise SafeSteerError(
            f"llama.cpp ({PACKAGE}) cannot read the GGUF file, which was deleted. Try:"
            " another --dtype, or --format merged"
        ) from None
    return [Answer(row["tokens"], {int(k): v for k, v in row["top"].items()}) for row in rows]


def parameters(file: str, adapter: str | None = None) -> Any:
    """The parameters of xllamacpp for a model on the CPU, with or without an adapter."""
    import xllamacpp

    made = xllamacpp.CommonParams()
    made.model.path = file
    if adapter is not None:
        made.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    made.n_gpu_layers = 0
    made.warmup, made.verbosity = False, 0
    # Its threads spin: with one per core, any other process slows them down severely.
    threads = max(1, (os.cpu_count() or 2) // 2)
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = threads
    return made


def main() -> None:
    """Read prompts as JSON from stdin; print the next tokens of each as JSON."""
    import xllamacpp

    settings = parameters(*sys.argv[1:])
    settings.n_ctx, settings.n_parallel = 1024, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Its kernel rounds to float16.
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    rows = []
    for prompt in json.load(sys.stdin):
        request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": TOP}
        # A token that is half a character has no log-probabilities. Those of the others are the
        # model's own, whichever is chosen.
        chosen = {"logit_bias": [[_LETTER, 1e4]], "cache_prompt": False}
        answer = server.handle_completions({**request, **chosen})
        (first,) = answer["choices"][0]["logprobs"]["content"]
        top = {row["id"]: row["logprob"] for row in first["top_logprobs"]}
        rows.append({"tokens": answer["usage"]["prompt_tokens"], "top": top})
    print(json.dumps(rows), flush=True)
    os._exit(0)  # its threads may never end


if __name__ == "__main__":
    main()
