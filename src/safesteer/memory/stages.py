"""The peak of memory of each stage, predicted: a model's shape and the settings, nothing is run.

Each stage is the largest of its steps, and a step is a sum of named parts, so that a table can say
what the bytes are for. What the interpreter and the libraries take is not in it: it is measured in
docs/performance.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from safesteer.config.settings import Settings
from safesteer.distill.teacher_pass import TEACHER_BATCH_TOKENS
from safesteer.memory.blocks import FLOAT32, Pass
from safesteer.memory.shape import Shape, first_layer
from safesteer.models.batch_size import CUDA_ROWS, rows_on_cpu, rows_on_gpu, token_bytes
from safesteer.models.hidden_states import is_worthwhile

STAGES = ("load", "direction", "tokens", "train", "evaluate")

# Sizes of batches that no setting changes; a test compares them with those of the stages.
PROMPTS_AT_ONCE = 32  # means of activations, tokens, likelihoods
ANSWERS_AT_ONCE = 64  # rollouts
OBSERVED = 16  # steered answers of a candidate
OBSERVED_TOKENS = 24
SCORED_ROWS = {"cpu": 48, "cuda": 256}  # rows of a batch while candidates are scored
KEPT_BYTES = 1 << 30  # of what entered the blocks while candidates are scored
BLOCK = 1 << 22  # logits of one block of the streamed loss
# What glibc's malloc holds beside what is in use while a backward pass is made, of tensors up to 32
# MiB, which are not mapped one by one: what is kept lies between what is freed. Measured by
# mallinfo2 (docs/performance.md). GPUs: the share of a card that `cards.USABLE` leaves.
MALLOC_HOLDS = 0.5
# Bytes of a weight in a linear layer of a block, with its scales: LLM.int8() has one float16 for a
# row; nf4 half a byte, and for every 64 weights a scale of one byte, those scaled again.
BYTES_OF_BITS = {8: 1.0, 4: 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts: the longest ones decide.

    Attributes:
        prompt: of a rendered prompt.
        taught: of the same as the teacher reads it.
        shared: with which all rendered prompts begin.
        taught_shared: with which all begin as the teacher reads them.
        opening: of the longest opening of an answer in the direction stage.
    """

    prompt: int
    taught: int
    shared: int = 0
    taught_shared: int = 0
    opening: int = 20

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], taught: Sequence[Sequence[int]]) -> Lengths:
        """The lengths of rendered prompts (token ids), and of the same for the teacher."""
        return cls(
            max(map(len, prompts)),
            max(map(len, taught)),
            _common(prompts),
            _common(taught),
        )


@dataclass(frozen=True)
class Placement:
    """Where and in which types the model is.

    Attributes:
        device: cpu or cuda.
        size: bytes of a weight and of an activation: 2 or 4.
        bits: 8 or 4 for a base whose linear layers are rounded to so many; None: not rounded.
        card: bytes of the device's memory, by which answers are batched; None: as many as ever.
        gguf: bytes of the GGUF file that the model comes from; 0: it does not.
    """

    device: str = "cuda"
    size: int = 2
    bits: int | None = None
    card: float | None = None
    gguf: int = 0


@dataclass(frozen=True)
class Peak:
    """The largest moment of a stage: {what the bytes are for: how many}."""

    parts: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    def __add__(self, other: Peak) -> Peak:
        names = {**self.parts, **other.parts}
        return Peak({n: self.parts.get(n, 0) + other.parts.get(n, 0) for n in names})


def predict(
    shape: Shape, settings: Settings, lengths: Lengths, place: Placement = Placement()
) -> dict[str, Peak]:
    """The peak of every stage, by name; see the module for what is not in it."""
    stages = _Stages(shape, settings, lengths, place)
    return {name: getattr(stages, name)() for name in STAGES}


def weight_bytes(shape: Shape, place: Placement) -> float:
    """The weights of the base; rounded ones are the linear layers of the blocks alone."""
    if place.bits is None:
        return shape.parameters * place.size
    rounded = shape.block_weights
    return rounded * BYTES_OF_BITS[place.bits] + (shape.parameters - rounded) * place.size


@dataclass(frozen=True)
class _Stages:
    shape: Shape
    settings: Settings
    lengths: Lengths
    place: Placement

    # What the stages share -----------------------------------------------------------------------

    @property
    def base(self) -> Peak:
        """The weights, and one matrix of a rounded base, made whole while it is used."""
        weights = Peak({"weights": weight_bytes(self.shape, self.place)})
        if self.place.bits is None:
            return weights
        return weights + Peak({"one pass": self._largest_matrix * self.place.size})

    @property
    def _largest_matrix(self) -> int:
        return max((linear.weights for linear in self.shape.linears), default=0)

    def reading(self, rows: int, width: int, shared: int, **more: Any) -> Pass:
        """A pass; what all rows begin with is run once where that is worthwhile."""
        saved = shared * (rows - 1)
        shared = shared if is_worthwhile(saved, torch.device(self.place.device)) else 0
        return Pass(self.shape, rows, width, shared, **{"size": self.place.size, **more})

    def answers(self, rows: int, prompt: int, shared: int, new: int, *, drawn: bool) -> Peak:
        """Generation: the cache of all tokens, and the larger of the prompt's pass and a step.

        A step writes the keys and values of one block anew, one token longer, and repeats them for
        every head. Logits come in the model's type and in float32; drawing from them makes
        probabilities, their sums and new scores of the same size.
        """
        s, size = self.shape, self.place.size
        whole = replace(self.reading(rows, prompt, shared), width=prompt + new)
        prompt_pass = self.reading(rows, prompt, shared)
        inside = prompt_pass.alive - (prompt_pass.cache if prompt_pass.shared else 0)
        step = 2 * (s.keys + s.queries) * size * rows * whole.width
        logits = rows * s.vocabulary * (size + FLOAT32 * (4 if drawn else 1))
        return Peak(
            {"keys and values": whole.cache, "one pass": max(inside, step), "logits": logits}
        )

    def rows_of_answers(self, tokens: int, size: int) -> int:
        """How many answers `safesteer.models.batch_size` puts into a batch; `size` of a number."""
        if self.settings.evaluate.advanced.batch_size:
            return self.settings.evaluate.advanced.batch_size
        if self.place.device == "cpu":
            return rows_on_cpu(tokens)
        if self.place.card is None:
            return CUDA_ROWS
        s = self.shape
        token = token_bytes(size, s.layers, s.keys, s.width)
        return rows_on_gpu(self.place.card, weight_bytes(s, self.place), tokens, token)

    # The stages ----------------------------------------------------------------------------------

    def load(self) -> Peak:
        """The weights, read tensor by tensor; a GGUF file whole, as float32, in host memory."""
        weights = Peak({"weights": weight_bytes(self.shape, self.place)})
        if not self.place.gguf or self.place.device != "cpu":
            return weights
        return Peak({"weights": FLOAT32 * self.shape.parameters, "file": self.place.gguf})

    def direction(self) -> Peak:
        """Means of all blocks' inputs, scores of candidates, steered answers.

        While means are taken, the last positions of what entered every block are slices that hold
        all of it: L tensors [B, S, D]. While candidates are scored, what entered the blocks is kept
        on purpose, up to 1 GiB, and rows of several candidates share a batch.
        """
        s, lengths, chosen = self.shape, self.lengths, self.settings.direction.advanced
        width = lengths.prompt + lengths.opening
        rows = min(PROMPTS_AT_ONCE, chosen.train_prompts)
        means = self.reading(rows, width, lengths.shared)
        entered = s.layers * means.tokens * s.width * self.place.size
        taking = Peak({"inputs of all blocks": entered, "one pass": means.alive})

        allowed = int(s.layers * (1 - chosen.drop_last_layers))
        layers = len([i for i in chosen.layers or range(1, s.layers) if i < allowed])
        read = self.reading(chosen.validation_prompts, lengths.prompt, lengths.shared)
        kept = min(KEPT_BYTES, layers * read.tokens * s.width * self.place.size)
        batch = self.reading(SCORED_ROWS[self.place.device], lengths.prompt, lengths.shared)
        scoring = Peak(
            {
                "inputs of all blocks": kept,
                "one pass": batch.alive,
                # Of the base and of a candidate, with the terms of the KL.
                "logits": 5 * FLOAT32 * chosen.validation_prompts * s.vocabulary,
            }
        )
        saying = self.answers(
            OBSERVED, lengths.prompt, lengths.shared, OBSERVED_TOKENS, drawn=False
        )
        return self.base + _largest(taking, scoring, saying)

    def tokens(self) -> Peak:
        """The teacher's continuations, then the hidden states of both models on them.

        The contrast of a position has the logits, log-probabilities and probabilities of both
        models and what is between them: about eight tensors [B, V] in float32.
        """
        s, lengths, chosen = self.shape, self.lengths, self.settings.tokens
        rows = min(PROMPTS_AT_ONCE, chosen.advanced.num_prompts * chosen.num_generations)
        horizon = chosen.horizon
        said = self.answers(rows, lengths.taught, lengths.taught_shared, horizon, drawn=True)
        read = self.reading(rows, lengths.taught + horizon, lengths.taught_shared)
        states = 2 * rows * horizon * s.width * self.place.size
        contrast = 8 * FLOAT32 * rows * s.vocabulary + 4 * 8 * s.vocabulary
        return self.base + _largest(
            said,
            Peak({"hidden states": states, "one pass": read.alive}),
            Peak({"hidden states": states, "logits": contrast}),
        )

    def train(self) -> Peak:
        """Rollouts, the teacher's passes, and the student's forward and backward pass."""
        s, lengths, chosen = self.shape, self.lengths, self.settings.train
        completion, per_update = chosen.max_completion_length, chosen.completions_per_step
        window = per_update * chosen.steps_per_generation
        micro = min(chosen.per_device_train_batch_size or per_update, per_update)
        prompt = min(lengths.prompt, chosen.advanced.max_prompt_length)
        taught = lengths.taught - lengths.prompt + prompt
        states = Peak(
            {"hidden states": window * completion * s.width * self.place.size}
        )  # the teacher's, of the whole window

        rollout = self.answers(
            min(ANSWERS_AT_ONCE, window), prompt, lengths.shared, completion, drawn=True
        )
        at_once = min(window, max(1, TEACHER_BATCH_TOKENS // (taught + completion)))
        reading = self.reading(at_once, taught + completion, lengths.taught_shared)
        teaching = states + Peak({"one pass": reading.alive})
        return self._trained() + _largest(
            rollout, teaching, states + self._student(micro, prompt, micro < per_update)
        )

    def evaluate(self) -> Peak:
        """Answers of as many prompts as fit, then base and trained model on the same answers."""
        s, lengths, chosen = self.shape, self.lengths, self.settings.evaluate
        new = chosen.max_new_tokens
        weights = self.base
        if self.settings.train.method == "full":
            weights += Peak({"trained": s.parameters * self.place.size})
        else:
            adapters = s.lora_parameters(self.settings.train.lora)
            weights += Peak({"trained": FLOAT32 * adapters})
        rows = self.rows_of_answers(lengths.taught + new, self.place.size)
        said = self.answers(rows, lengths.taught, lengths.taught_shared, new, drawn=False)
        return weights + _largest(said, self._drift_that_fits(weights))

    def _drift_that_fits(self, weights: Peak) -> Peak:
        """In float32, batches halved until they fit; in the model's type where no row does."""
        tokens = self.lengths.prompt + self.settings.evaluate.max_new_tokens
        card = self.place.card or math.inf
        if self.place.bits != 8:
            rows = self.rows_of_answers(tokens, FLOAT32)
            while rows > 1 and (weights + self._drift(rows, FLOAT32)).bytes > card:
                rows //= 2
            drift = self._drift(rows, FLOAT32)
            if (weights + drift).bytes <= card:
                return drift
        return self._drift(self.rows_of_answers(tokens, self.place.size), self.place.size)

    def _drift(self, rows: int, size: int) -> Peak:
        """Answers read by both models with numbers of `size` bytes, a block widened at a time."""
        s, lengths, new = self.shape, self.lengths, self.settings.evaluate.max_new_tokens
        read = self.reading(rows, lengths.prompt + new, lengths.shared, size=size)
        widened = 0
        if size > self.place.size:
            widened = s.largest_block(rounded=self.place.bits is not None)
            if self.place.bits is not None:
                widened += self._largest_matrix
        return Peak(
            {
                "hidden states": 2 * read.states,
                "one pass": read.alive,
                "a block in float32": FLOAT32 * widened,
                "logits": 5 * FLOAT32 * new * s.vocabulary,
            }
        )

    # The student ---------------------------------------------------------------------------------

    def _trained(self) -> Peak:
        """Weights with what training adds to them for good: float32, two moments, the teacher."""
        s, chosen = self.shape, self.settings.train
        if chosen.method == "full":
            return Peak(
                {
                    "weights": FLOAT32 * s.parameters,
                    "frozen teacher": s.parameters * self.place.size,
                    "optimizer": 2 * FLOAT32 * s.parameters,
                }
            )
        adapters = s.lora_parameters(chosen.lora)
        parts: dict[str, float] = {
            "adapter": FLOAT32 * adapters,
            "optimizer": 2 * FLOAT32 * adapters,
        }
        if chosen.lora.kfac_damping is not None:
            parts["whitening"] = FLOAT32 * sum(
                each.inputs**2 + each.outputs**2 for each in s.adapted(chosen.lora)
            )
        return self.base + Peak(parts)

    def _student(self, micro: int, prompt: int, accumulates: bool) -> Peak:
        """The moment at which the backward pass begins, or, all weights trained, at which it ends.

        On the CPU attention is the plain one, and all-weights training computes in float32; on
        GPUs it is fused, and under autocast a copy of every matrix in bfloat16 is kept.
        """
        s, chosen, place = self.shape, self.settings.train, self.place
        full, cpu = chosen.method == "full", place.device == "cpu"
        width = prompt + chosen.max_completion_length
        shared = 0 if chosen.gradient_checkpointing else self.lengths.shared
        size = FLOAT32 if full and cpu else place.size
        batch = self.reading(micro, width, shared, size=size, fused=not cpu)
        if chosen.gradient_checkpointing:  # the inputs of all blocks, and one block made again
            kept = s.layers * batch.states + batch.kept(chosen)
        else:
            first = 0 if full else first_layer(chosen.lora)
            kept = (s.layers - first) * batch.kept(chosen)
        positions = micro * chosen.max_completion_length
        # Logits, probabilities, and both in the model's type; of all tokens: for both models.
        whole = chosen.loss_tokens == "all" or (
            chosen.anchor_share > 0 and chosen.anchor_tokens == "all"
        )
        block = min(BLOCK, positions * s.vocabulary)
        parts: dict[str, float] = {
            "kept for the backward pass": kept,
            "one pass": max(batch.backward, batch.cache if batch.shared else 0),
            "hidden states": 4 * positions * s.width * size,
            "logits": block * FLOAT32 * (8 if whole else 5),
        }
        if cpu:
            parts["held by malloc"] = MALLOC_HOLDS * sum(parts.values())
        if not full:
            adapters = s.lora_parameters(chosen.lora)
            # The factors in the model's type are kept as well.
            return Peak({**parts, "gradients": (FLOAT32 + size) * adapters})
        if not cpu:
            parts["matrices in bfloat16"] = 2 * s.block_weights
        # Gradients of the output matrix: of the sum over the vocabulary, of the tokens of S, both.
        begins = Peak({**parts, "gradients": 3 * FLOAT32 * s.vocabulary * s.width})
        everything = Peak({"gradients": FLOAT32 * s.parameters})
        if accumulates:
            return begins + everything
        return _largest(begins, everything)


def _largest(*peaks: Peak) -> Peak:
    return max(peaks, key=lambda peak: peak.bytes)


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, the last one of each left over."""
    most = min(map(len, sequences)) - 1
    same = (len(set(tokens)) == 1 for tokens in zip(*sequences, strict=False))
    return next((place for place, alike in enumerate(same) if not alike or place >= most), most)
