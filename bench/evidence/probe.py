"""A linear probe for harmful requests on the base model's activations.

    python -m bench.evidence probe [MODEL] [--layers 12,14,17] [--data-dir DIR --benchmarks a,b]
        [--limit N]

A logistic regression learns to separate our harmful from our harmless and borderline training
prompts by the activations of the untrained model at one layer, and is applied to other prompts. It
reads one of

- *end*: the residual stream, mean over the tokens of the template behind the request;
- *prompt*: the residual stream, mean over the tokens of the request;
- *attended*: the layer's normalized input, weighted by the attention of the template's end, mean
  over heads and positions: what an adapter on `v_proj` can read without a change of attention.

Prints the share of prompts classified as harmful at even odds. The penalty C is chosen by the log
loss on our validation prompts; no other prompt is used for a choice and no model is trained.
scikit-learn, which fits the regression, comes with the extra `eval`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.command_line import names, numbers
from bench.inputs import of_benchmarks
from bench.tables import table_head, table_row
from safesteer.config.load import load_settings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.sources import load_benchmarks
from safesteer.models.chat import Message
from safesteer.models.layers import backbone, find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import edit_block_input
from safesteer.prompts import PROMPT_SETS, load_prompt_sets

PLACES = ("end", "prompt", "attended")
BATCH = 32
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


class _Done(Exception):
    """Ends a forward pass whose later layers are not needed."""


@torch.no_grad()
def features(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    layers: Sequence[int],
    places: Sequence[str] = PLACES,
) -> dict[tuple[int, str], np.ndarray]:
    """Mean activations of prompts.

    Args:
        layers: the layers whose inputs are read.
        places: of PLACES; "attended" needs a model with eager attention.

    Returns:
        {(layer, place): [prompts, D]}.
    """
    end = len(model.chat.post_instruction_ids())
    plain, other = (model.chat.ids([{"role": "user", "content": text}]) for text in ("x", "Banana"))
    start = next(i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b)
    streams: dict[int, torch.Tensor] = {}  # [B, T, D] of each layer
    normalized: dict[int, torch.Tensor] = {}
    blocks, attends = find_blocks(model.model), "attended" in places
    found = {
        (layer, place): [torch.empty(0)] * len(prompts) for layer in layers for place in places
    }

    def keep(into: dict[int, torch.Tensor], layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def look(hidden: torch.Tensor) -> torch.Tensor:
            into[layer] = hidden.float()
            if not attends and layer == max(layers):
                raise _Done
            return hidden

        return look

    rendered = [model.chat.ids(messages) for messages in prompts]
    alike: dict[int, list[int]] = {}  # of one length, so that nothing is padded
    for row, one in enumerate(rendered):
        alike.setdefault(len(one), []).append(row)
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(edit_block_input(blocks[layer], keep(streams, layer)))
            if attends:
                attention = blocks[layer].self_attn
                hooks.enter_context(edit_block_input(attention, keep(normalized, layer)))
        for rows in (r[i : i + BATCH] for r in alike.values() for i in range(0, len(r), BATCH)):
            ids = torch.tensor([rendered[row] for row in rows], device=model.model.device)
            weights: Sequence[torch.Tensor] = ()
            with suppress(_Done):
                weights = backbone(model.model)(
                    ids, use_cache=False, output_attentions=attends
                ).attentions
            for layer in layers:
                seen = {
                    "end": streams[layer][:, -end:].mean(1),
                    "prompt": streams[layer][:, start:-end].mean(1),
                }
                if attends:
                    over_tokens = weights[layer][:, :, -end:].float().mean((1, 2))  # [B, T]
                    seen["attended"] = torch.einsum("bt,btd->bd", over_tokens, normalized[layer])
                for place in places:
                    for row, vector in zip(rows, seen[place].cpu(), strict=True):
                        found[layer, place][row] = vector
    return {key: torch.stack(vectors).numpy() for key, vectors in found.items()}


def fitted(
    train: Sequence[np.ndarray], validation: Sequence[np.ndarray]
) -> Any:  # each: harmful, then the other kinds
    """The regression with the lowest log loss on validation prompts."""

    def labelled(kinds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        harmful = np.repeat([kind is kinds[0] for kind in kinds], [len(kind) for kind in kinds])
        return np.concatenate(kinds), harmful

    fits = [
        make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=1000, class_weight="balanced")
        ).fit(*labelled(train))
        for c in PENALTIES
    ]
    asked, harmful = labelled(validation)
    return min(fits, key=lambda fit: log_loss(harmful, fit.predict_proba(asked)))


class Probe:
    """A linear probe for harmful requests, on the mean activation over the request at one layer.

    Args:
        model: the base model.
        layer: the layer whose input is read.
        train: training prompts of the three sets. Four fifths of each fit the probe; the last fifth
            chooses its penalty and sets `threshold`.
    """

    def __init__(
        self, model: ChatModel, layer: int, train: Mapping[str, Sequence[Sequence[Message]]]
    ) -> None:
        self.model, self.layer = model, layer
        kinds = [self._read(train[name]) for name in PROMPT_SETS]
        parts = [np.split(kind, [len(kind) * 4 // 5]) for kind in kinds]
        rest = [part[1] for part in parts]
        self.regression = fitted([part[0] for part in parts], rest)
        self.of_harmless = self.regression.decision_function(np.concatenate(rest[1:]))

    def scores(self, prompts: Sequence[Sequence[Message]]) -> np.ndarray:
        """Log-odds [prompts] that a request is harmful."""
        scores: np.ndarray = self.regression.decision_function(self._read(prompts))
        return scores

    def threshold(self, false_positives: float) -> float:
        """The log-odds above which this share of the held-out harmless prompts lies."""
        return float(np.quantile(self.of_harmless, 1 - false_positives))

    def _read(self, prompts: Sequence[Sequence[Message]]) -> np.ndarray:
        return features(self.model, prompts, [self.layer], ["prompt"])[self.layer, "prompt"]


def check_layers(model: ChatModel, layers: Sequence[int]) -> None:
    """Raise InputError for layers that the model does not have."""
    last = model.layers - 1
    if not all(0 <= layer <= last for layer in layers):
        raise InputError(f"no layers {layers}: the model has 0 to {last}. Try: other layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--layers", default="12,14,17", help="whose inputs are read, from 0 on")
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="")
    parser.add_argument("--limit", type=int, default=100, help="prompts of each benchmark")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    overrides = of_benchmarks(arguments.limit, arguments.data_dir)
    settings = load_settings("smollm2-135m", [f"model.id={arguments.model}", *overrides])
    sets = load_prompt_sets(settings.prompts, 0)
    benchmarks = load_benchmarks(names(arguments.benchmarks), settings.evaluate, sets)
    model = load_model(settings.model)
    layers = numbers(arguments.layers)
    check_layers(model, layers)
    model.model.set_attn_implementation("eager")  # the only one that returns attention weights
    split = {
        part: [
            features(model, [p.messages for p in getattr(sets[k], part)], layers)
            for k in PROMPT_SETS
        ]
        for part in ("train", "validation", "test")
    }
    asked = dict(zip(PROMPT_SETS, split["test"], strict=True))
    for one in benchmarks:
        asked[one.name] = features(model, [item.prompt.messages for item in one.items], layers)
    print(table_head("layer", "reads", *asked))
    for layer in layers:
        for place in PLACES:
            key = (layer, place)
            fit = fitted(*([kind[key] for kind in split[p]] for p in ("train", "validation")))
            shares = [f"{fit.predict(each[key]).mean():.0%}" for each in asked.values()]
            print(table_row(layer, place, *shares), flush=True)
