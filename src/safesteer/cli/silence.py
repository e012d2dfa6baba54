"""Keep the messages of libraries off the screen. Call before importing them."""

from __future__ import annotations

import logging
import os
import sys
import warnings

# No telemetry, with or without --debug.
_ALWAYS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Waiting threads spin for a tenth of libgomp's time, then sleep: as fast alone, and less in the
    # way of other work. Without spinning a second thread brings nothing.
    "GOMP_SPINCOUNT": "30000",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
_QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    # The progress bar of the GGUF reader. Ours are rich's.
    "TQDM_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def silence_libraries(debug: bool) -> None:
    """Set the variables that libraries read on import.

    Args:
        debug: keep the messages of the libraries, for `--debug`.
    """
    for name, value in _ALWAYS.items():
        os.environ.setdefault(name, value)
    if debug:
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    # Some libraries set filters of their own when they are imported.
    warnings.showwarning = lambda *arguments, **named: None
    # Without a handler Python prints warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
