"""Effect of rounding alone on agreement with the base: one adapter, ever weaker, in two dtypes.

    python -m research.rounding ADAPTER [--scales 0.001,0.01,0.1,0.3,1] [--prompts 40] [--tokens 32]

ADAPTER is an adapter folder of the built-in model (RUN/adapter). At a thousandth of its strength a
student is the base for all purposes, but rounds differently where weights and activations are
bfloat16. Prints drift on the base's answers to harmless validation prompts, as a run measures it,
in float32, and with passes in bfloat16; the LM head is in float32 both times.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from bench.command_line import names, run_script
from bench.tables import table_head, table_row
from safesteer.config.load import load_settings
from safesteer.evaluate import drift
from safesteer.models.load import load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import load_prompt_sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--scales", default="0.001,0.01,0.1,0.3,1")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    settings = load_settings("smollm2-135m", ["model.dtype=bfloat16"])
    model = load_model(settings.model)
    harmless = load_prompt_sets(settings.prompts, 0)["harmless"].validation
    prompts = [prompt.messages for prompt in harmless[: arguments.prompts]]
    student = PeftModel.from_pretrained(model.model, arguments.adapter).eval()
    compute_in_model_dtype(student)
    print(table_head("scale", "agreement, bfloat16", "KL", "agreement, float32", "KL"))
    for scale in names(arguments.scales):
        cells = []
        for passes in (lambda _: nullcontext(torch.bfloat16), drift.in_float32):
            with (
                rescale_adapter_scale(student, float(scale)),
                patch.object(drift, "in_float32", passes),
            ):
                found = drift.measure_drift(
                    model, student, prompts, max_new_tokens=arguments.tokens
                ).to_json()
            agreement, divergence = (found[name]["value"] for name in ("agreement", "divergence"))
            cells += [f"{agreement:.1%}", f"{divergence:.1e}"]
        print(table_row(scale, *cells), flush=True)


if __name__ == "__main__":
    run_script("research.rounding")
