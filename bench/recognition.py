"""What a model's own representation tells of a request's harm, and where in the prompt it lies.

    python bench/recognition.py [MODEL] [--layers 12,14,17] [--data-dir DIR --benchmarks a,b]
        [--limit N]

A logistic regression learns to tell our harmful from our harmless and borderline training prompts
by what the untrained model computes at one layer, and is asked about prompts it has not seen. It
looks at one of

- *end*: the residual stream over the template's end, where the answer begins, their mean;
- *prompt*: the residual stream over the tokens of the request, their mean;
- *attended*: the layer's normalised input as the template's end attends to it, the mean over its
  heads and positions: what an adapter on `v_proj` could tell without any change of attention.

The share of prompts that it takes for harmful at even odds is printed in Markdown. How strongly it
is held back (C) is chosen by its log loss on our validation prompts; no other prompt is used for a
choice. So the table says what is there to be learned; no model is trained. scikit-learn, which the
regression is of, comes with the extra `eval`.
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

from safesteer.cli.silence import silence_libraries
from safesteer.config.load import load_settings
from safesteer.errors import InputError
from safesteer.evaluate.benchmarks.sources import load_benchmarks
from safesteer.models.chat import Message
from safesteer.models.layers import backbone, find_blocks
from safesteer.models.load import ChatModel, load_model
from safesteer.models.steering import edit_block_input
from safesteer.prompts import load_prompt_sets

KINDS = ("harmful", "harmless", "borderline")
PLACES = ("end", "prompt", "attended")
BATCH = 32
HELD_BACK = (1e-4, 1e-3, 1e-2, 1e-1)


class _SeenEnough(Exception):
    """Ends a forward pass whose later layers nobody looks at."""


@torch.no_grad()
def features(
    model: ChatModel,
    prompts: Sequence[Sequence[Message]],
    layers: Sequence[int],
    places: Sequence[str] = PLACES,
) -> dict[tuple[int, str], np.ndarray]:
    """{(layer, place): [prompts, D]} of the layers' inputs; "attended" needs eager attention."""
    end = len(model.chat.post_instruction_ids())
    plain, other = (model.chat.ids([{"role": "user", "content": text}]) for text in ("x", "Banana"))
    start = next(i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b)
    streams: dict[int, torch.Tensor] = {}  # [B, T, D] of each layer
    normalised: dict[int, torch.Tensor] = {}
    blocks, attends = find_blocks(model.model), "attended" in places
    found = {
        (layer, place): [torch.empty(0)] * len(prompts) for layer in layers for place in places
    }

    def keep(into: dict[int, torch.Tensor], layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def look(hidden: torch.Tensor) -> torch.Tensor:
            into[layer] = hidden.float()
            if not attends and layer == max(layers):
                raise _SeenEnough
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
                hooks.enter_context(edit_block_input(attention, keep(normalised, layer)))
        for rows in (r[i : i + BATCH] for r in alike.values() for i in range(0, len(r), BATCH)):
            ids = torch.tensor([rendered[row] for row in rows], device=model.model.device)
            weights: Sequence[torch.Tensor] = ()
            with suppress(_SeenEnough):
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
                    seen["attended"] = torch.einsum("bt,btd->bd", over_tokens, normalised[layer])
                for place in places:
                    for row, vector in zip(rows, seen[place].cpu(), strict=True):
                        found[layer, place][row] = vector
    return {key: torch.stack(vectors).numpy() for key, vectors in found.items()}


def fitted(
    train: Sequence[np.ndarray], validation: Sequence[np.ndarray]
) -> Any:  # each: harmful, then the other kinds
    """The regression that is best on validation prompts."""

    def labelled(kinds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        harmful = np.repeat([kind is kinds[0] for kind in kinds], [len(kind) for kind in kinds])
        return np.concatenate(kinds), harmful

    fits = [
        make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=1000, class_weight="balanced")
        ).fit(*labelled(train))
        for c in HELD_BACK
    ]
    asked, harmful = labelled(validation)
    return min(fits, key=lambda fit: log_loss(harmful, fit.predict_proba(asked)))


class Gate:
    """How harmful a model takes requests for, and the odds that few harmless ones reach.

    The regression over the tokens of the request at one layer. `train` holds the training prompts
    of KINDS: four fifths of each are what it is fitted on, the last fifth says how strongly it is
    held back and what `bound` gives.
    """

    def __init__(
        self, model: ChatModel, layer: int, train: Mapping[str, Sequence[Sequence[Message]]]
    ) -> None:
        self.model, self.layer = model, layer
        kinds = [self._look(train[name]) for name in KINDS]
        parts = [np.split(kind, [len(kind) * 4 // 5]) for kind in kinds]
        rest = [part[1] for part in parts]
        self.regression = fitted([part[0] for part in parts], rest)
        self.of_harmless = self.regression.decision_function(np.concatenate(rest[1:]))

    def _look(self, prompts: Sequence[Sequence[Message]]) -> np.ndarray:
        return features(self.model, prompts, [self.layer], ["prompt"])[self.layer, "prompt"]

    def scores(self, prompts: Sequence[Sequence[Message]]) -> np.ndarray:
        """Log-odds [prompts]: above 0 where a request is rather taken for harmful."""
        scores: np.ndarray = self.regression.decision_function(self._look(prompts))
        return scores

    def bound(self, false_alarms: float) -> float:
        """The log-odds that this share of the harmless prompts held out exceeds."""
        return float(np.quantile(self.of_harmless, 1 - false_alarms))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument(
        "--layers", default="12,14,17", help="whose inputs are looked at, from 0 on"
    )
    parser.add_argument("--data-dir", help="files of --benchmarks")
    parser.add_argument("--benchmarks", default="")
    parser.add_argument("--limit", type=int, default=100, help="prompts of each benchmark")
    arguments = parser.parse_args()
    silence_libraries(debug=False)
    overrides = [f"model.id={arguments.model}", f"evaluate.limit={arguments.limit}"]
    if arguments.data_dir:
        overrides.append(f"evaluate.data_dir={arguments.data_dir}")
    try:
        settings = load_settings("smollm2-135m", overrides)
        sets = load_prompt_sets(settings.prompts, 0)
        names = [name.strip() for name in arguments.benchmarks.split(",") if name.strip()]
        benchmarks = load_benchmarks(names, settings.evaluate, sets)
        model = load_model(settings.model)
    except InputError as error:
        raise SystemExit(str(error)) from None
    model.model.set_attn_implementation("eager")  # which alone returns what it attends to
    layers = [int(layer) for layer in arguments.layers.split(",")]
    last = len(find_blocks(model.model)) - 1
    if not all(0 <= layer <= last for layer in layers):
        raise SystemExit(f"--layers {arguments.layers}: this model's layers are 0 to {last}")
    split = {
        part: [features(model, [p.messages for p in getattr(sets[k], part)], layers) for k in KINDS]
        for part in ("train", "validation", "test")
    }
    asked = dict(zip(KINDS, split["test"], strict=True))
    for one in benchmarks:
        asked[one.name] = features(model, [item.prompt.messages for item in one.items], layers)
    print("| layer | looks at | " + " | ".join(asked) + " |")
    print("|---|---|" + "---|" * len(asked))
    for layer in layers:
        for place in PLACES:
            key = (layer, place)
            fit = fitted(*([kind[key] for kind in split[p]] for p in ("train", "validation")))
            shares = [f"{100 * fit.predict(each[key]).mean():.0f} %" for each in asked.values()]
            print(f"| {layer} | {place} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main()
