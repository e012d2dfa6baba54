"""What rounding alone does to agreement with the base: one adapter, ever weaker, read in two types.

    python bench/rounding.py ADAPTER [--scales 0.001,0.01,0.1,0.3,1] [--prompts 40] [--tokens 32]

ADAPTER is the folder of an adapter of the built-in model (RUN/adapter). At a thousandth of its
strength a student is the base for all purposes; where weights and activations are bfloat16 it still
rounds them otherwise. Drift is measured as a run measures it, in float32, and with passes in
bfloat16 (the output matrix in float32 both times), on the base's answers to harmless validation
prompts.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from safesteer.cli.silence import silence_libraries
from safesteer.config.load import load_settings
from safesteer.evaluate import drift
from safesteer.models.load import load_model
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.prompts import load_prompt_sets


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--scales", default="0.001,0.01,0.1,0.3,1")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    settings = load_settings("smollm2-135m", ["model.dtype=bfloat16"])
    model = load_model(settings.model)
    harmless = load_prompt_sets(settings.prompts, 0)["harmless"].validation
    prompts = [prompt.messages for prompt in harmless[: arguments.prompts]]
    student = PeftModel.from_pretrained(model.model, arguments.adapter).eval()
    compute_in_model_dtype(student)
    print("| scale | agreement, bfloat16 | KL | agreement, float32 | KL |\n|---|---|---|---|---|")
    for scale in arguments.scales.split(","):
        cells = []
        for passes in (lambda _: nullcontext(torch.bfloat16), drift.in_float32):
            with (
                rescale_adapter_scale(student, float(scale)),
                patch.object(drift, "in_float32", passes),
            ):
                found = drift.measure_drift(
                    model, student, prompts, max_new_tokens=arguments.tokens
                )
            agreement, divergence = (found[name]["value"] for name in ("agreement", "divergence"))
            cells += [f"{agreement:.1%}", f"{divergence:.1e}"]
        print("| " + " | ".join([scale, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
