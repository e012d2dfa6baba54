"""Loading a GGUF file: dequantized, and from the cache.

    python -m bench.speed loading [MODEL] [--repeats 3]

Loads the model with `model.advanced.gguf_cache` off and on, in turns; the cache is filled before.
Prints median seconds.
"""

from __future__ import annotations

import argparse
import statistics

from bench.tables import table_head, table_row
from bench.timing import in_turns, timed
from safesteer.config.settings import ModelSettings
from safesteer.models.load import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)


def run(arguments: argparse.Namespace) -> None:
    """Print a table of two rows."""

    def load(cached: bool) -> float:
        settings = ModelSettings.model_validate(
            {"id": arguments.model, "advanced": {"gguf_cache": cached}}
        )
        return timed(lambda: load_model(settings))[1]

    load(True)
    found = in_turns((False, True), load, arguments.repeats)
    print(table_head("loading", "seconds", "ratio"))
    first = statistics.median(found[False])
    for cached, seconds in found.items():
        name, median = "from the cache" if cached else "dequantized", statistics.median(seconds)
        print(table_row(name, f"{median:.1f}", f"{median / first:.2f}"))
