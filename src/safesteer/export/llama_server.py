"""llama.cpp's own server on a GGUF file, in another process, from the package `xllamacpp`.

(python -m safesteer.export.llama_server FILE [ADAPTER], until its stdin ends)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safesteer.errors import SafeSteerError
from safesteer.export.llama_cpp import parameters

_SLOTS = 4  # requests at the same time
_CONTEXT = 2048  # tokens of each


@contextmanager
def serving(file: Path, adapter: Path | None = None) -> Iterator[str]:
    """The address of a server for a model, with or without a LoRA adapter in GGUF, until closed.

    Raises SafeSteerError if llama.cpp cannot load the files.
    """
    files = [str(path) for path in (file, adapter) if path is not None]
    process = subprocess.Popen(
        [sys.executable, "-m", "safesteer.export.llama_server", *files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        address = next((line for line in process.stdout if line.startswith("http://")), "")
        if not address:
            raise SafeSteerError(
                f"llama.cpp's server cannot load {files[-1]}. Try: a newer xllamacpp, or more"
                " memory"
            )
        yield address.strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def main() -> None:
    """Serve the files on a free port; print the address."""
    import xllamacpp

    settings = parameters(*sys.argv[1:])
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_parallel, settings.n_ctx = _SLOTS, _SLOTS * _CONTEXT
    settings.use_jinja = True  # the file's chat template, not a built-in one like it
    server = xllamacpp.Server(settings)
    print(f"\n{server.listening_address}", flush=True)
    sys.stdin.read()  # until the parent ends
    os._exit(0)  # its threads may never end


if __name__ == "__main__":
    main()
