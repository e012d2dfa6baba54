"""A GGUF file read by llama.cpp itself, where the package `xllamacpp` is installed.

Runs in a separate process, because its libraries and torch's conflict in one.
(echo '["Hi"]' | python -m safesteer.export.llama_cpp FILE)
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from safesteer.errors import SafeSteerError

PACKAGE = "xllamacpp"
TOP = 20  # likeliest tokens requested
TIMEOUT = 1800.0  # seconds


class Answer(NamedTuple):
    """llama.cpp's reading of one prompt."""

    tokens: int  # length of the prompt in tokens
    top: dict[int, float]  # {id: log-probability} of the likeliest next tokens


def reader(file: Path) -> Callable[[Sequence[str]], list[Answer]] | None:
    """A function from prompts to llama.cpp's answers; None where it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return lambda prompts: _ask(file, prompts)


def _ask(file: Path, prompts: Sequence[str]) -> list[Answer]:
    command = [sys.executable, "-m", "safesteer.export.llama_cpp", str(file)]
    try:
        done = subprocess.run(
            command,
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


def main() -> None:
    """Read prompts as JSON from stdin; print the next tokens of each as JSON."""
    import xllamacpp  # type: ignore[import-not-found]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx, parameters.n_parallel = 1024, 1
    parameters.n_gpu_layers = 0
    parameters.warmup, parameters.verbosity = False, 0
    # Its threads spin: with one per core, any other process slows them down severely.
    threads = max(1, (os.cpu_count() or 2) // 2)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    rows = []
    for prompt in json.load(sys.stdin):
        request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": TOP}
        answer = server.handle_completions({**request, "cache_prompt": False})
        (first,) = answer["choices"][0]["logprobs"]["content"]
        top = {row["id"]: row["logprob"] for row in first["top_logprobs"]}
        rows.append({"tokens": answer["usage"]["prompt_tokens"], "top": top})
    print(json.dumps(rows), flush=True)
    os._exit(0)  # its threads may never end


if __name__ == "__main__":
    main()
