"""Trade-off of one finished student between refusing and agreeing with its base.

    python -m research.frontier RUN [RUN ...] [--scales 0.4,0.6,0.8,1,1.2] [--limit 50]

RUNs are finished LoRA runs of one recipe, one per seed. Each adapter is scaled down (WiSE-FT, arXiv
2109.01903) or up (model extrapolation, arXiv 2404.16792) from what the run left, scale 1, and
judged on our validation prompts. A run with train.lora.extrapolation 0.25 is as it was trained at
scale 0.8. Prints means and standard deviations over the runs.

*AUC* is the area under the ROC curve of the likelihood of the refusing opening, harmful against
harmless and borderline prompts; *TPR* is its true positive rate at 5% false positives.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.helpers import rescale_adapter_scale

from bench.command_line import names, run_script
from bench.inputs import OWN, with_validation_prompts
from bench.tables import mean_and_deviation, table_head, table_row
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.suite import Suite
from safesteer.inference.variant import ModelVariant
from safesteer.models.chat import Message
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.oom import row_by_row
from safesteer.prompts import PromptSet
from safesteer.runs.artifacts import RunArtifacts
from safesteer.runs.directory import RunDirectory

COLUMNS = (*OWN, "agreement", "divergence", "AUC", "TPR")
DIGITS = {"divergence": 4, "AUC": 3}  # of figures that are no percentages
FALSE_POSITIVES = 0.05


@torch.no_grad()
def likelihoods(
    variant: ModelVariant, prompts: Sequence[Sequence[Message]], opening: str
) -> list[float]:
    """Log-probability of `opening` as the answer to each prompt."""
    chat, head = variant.model.chat, OutputHead.of(variant.runner)
    words = chat.answer_ids(opening)
    target = torch.tensor(words)

    rendered = [chat.ids(messages) for messages in prompts]

    def read(part: list[int]) -> list[float]:
        asked = [rendered[row] for row in part]
        states = completion_states(
            variant.runner, asked, [words] * len(part), chat.tokenizer.pad_token_id
        )
        each = torch.log_softmax(head.logits(torch.stack(states)), dim=-1)  # [B, words, V]
        asked_for = target.to(each.device).expand(len(part), -1)[..., None]
        return each.gather(-1, asked_for).sum((1, 2)).tolist()

    return row_by_row(rendered, 16, read, variant.model.model.device)


def separation(harmful: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """AUC, and true positive rate at FALSE_POSITIVES."""
    high, low = torch.tensor(harmful), torch.tensor(others)
    above = (high[:, None] > low).float() + 0.5 * (high[:, None] == low).float()
    return above.mean().item(), (high > low.quantile(1 - FALSE_POSITIVES)).float().mean().item()


def judge(contents: RunArtifacts, sets: dict[str, PromptSet]) -> dict[str, float]:
    """COLUMNS of a run's student as it is now; rates are of refusals."""
    settings = contents.settings
    student = contents.variant("aligned")
    with tempfile.TemporaryDirectory() as work:
        suite = Suite.plan(OWN, settings, sets, Path(work))
        (entries,) = suite.measure([student], Path(work)).values()
    refused = {}
    for name, result in entries.items():
        entry = result.to_json()
        attack = entry["metric"] == "attack_success_rate"
        refused[name] = 1 - entry["value"] if attack else entry["value"]
    asked = {name: [p.messages for p in one.test] for name, one in sets.items()}
    drift = measure_drift(
        contents.model,
        student.runner,
        asked["harmless"][: settings.evaluate.drift_prompts],
        max_new_tokens=settings.evaluate.max_new_tokens,
    ).to_json()
    opening = settings.direction.advanced.refusing_openings[0]
    known = {name: likelihoods(student, prompts, opening) for name, prompts in asked.items()}
    auc, tpr = separation(known["harmful"], known["harmless"] + known["borderline"])
    return (
        refused | {name: entry["value"] for name, entry in drift.items()} | {"AUC": auc, "TPR": tpr}
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--scales", default="0.4,0.6,0.8,1,1.2")
    parser.add_argument("--limit", type=int, default=50)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    scales = [float(scale) for scale in names(arguments.scales)]
    found: dict[float, list[dict[str, Any]]] = {scale: [] for scale in scales}
    for path in arguments.runs:
        finished = RunArtifacts(RunDirectory.load(path))
        finished.settings.evaluate.limit = arguments.limit
        sets = with_validation_prompts(finished.prompts)
        for scale in scales:
            with rescale_adapter_scale(finished.student, scale):
                found[scale].append(judge(finished, sets))
            print(f"{path} x{scale}: {found[scale][-1]}", flush=True)
    print(table_head("scale", *COLUMNS))
    for scale, each in found.items():
        cells = []
        for name in COLUMNS:
            values = [one[name] for one in each]
            plain = {"scale": 1, "digits": DIGITS[name], "unit": ""} if name in DIGITS else {}
            cells.append(mean_and_deviation(values, **plain))
        print(table_row(f"{scale:g}", *cells))


if __name__ == "__main__":
    run_script("research.frontier")
