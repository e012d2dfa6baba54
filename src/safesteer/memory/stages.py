"""Predicted peak memory of each stage, from a model's shape and the settings; nothing is run.

A stage's peak is that of its largest step, and a step is a sum of named parts, so that a table can
show what takes the memory. Python and its libraries come on top (docs/performance.md).
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
from safesteer.models.hidden_states import common_prefix, is_worthwhile

STAGES = ("load", "direction", "tokens", "train", "evaluate")

# Batch sizes of the stages that no setting changes; a test compares them.
PROMPTS_AT_ONCE = 32  # activation means, tokens, likelihoods
ANSWERS_AT_ONCE = 64  # rollouts
OBSERVED = 16  # steered answers of a candidate
OBSERVED_TOKENS = 24
SCORED_ROWS = {"cpu": 48, "cuda": 256}  # rows of a batch while candidates are scored
KEPT_BYTES = 1 << 30  # block inputs kept while candidates are scored
BLOCK = 1 << 22  # logits of one block of the streamed loss
# Share of memory that glibc's malloc holds unused during a backward pass: tensors below 32 MiB are
# not mapped one by one, and those that are kept lie between those that are freed. Measured with
# mallinfo2 (docs/performance.md). On GPUs `gpus.USABLE` covers this.
MALLOC_OVERHEAD = 0.5
# Bytes per weight of a quantized linear layer, scales included: LLM.int8() has one float16 scale
# per row; nf4 has half a byte per weight, and per 64 weights a one-byte scale, itself quantized.
BYTES_OF_BITS = {8: 1.0, 4: 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class Lengths:
    """Prompt lengths in tokens; the longest prompt counts."""

    prompt: int  # a rendered prompt
    teacher: int  # a prompt as the teacher reads it, with its context
    prefix: int = 0  # prefix that all rendered prompts share
    teacher_prefix: int = 0  # prefix that all of the teacher's prompts share
    opening: int = 20  # longest opening of an answer in the direction stage

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> Lengths:
        """The lengths of rendered prompts (token ids), and of the teacher's versions of them."""
        longest = max(map(len, prompts)), max(map(len, teacher))
        return cls(*longest, common_prefix(prompts, tail=1), common_prefix(teacher, tail=1))


@dataclass(frozen=True)
class Placement:
    """Device and number formats of the model."""

    device: str = "cuda"  # cpu or cuda
    size: int = 2  # bytes of a weight and of an activation: 2 or 4
    bits: int | None = None  # 8 or 4 for a base with quantized linear layers, else None
    gpu_memory: float | None = None  # bytes; decide the batch size of answers; None: no limit
    gguf: int = 0  # bytes of the GGUF file that the model is read from, else 0


@dataclass(frozen=True)
class Peak:
    """The largest moment of a stage as {part: bytes}."""

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
    """The peak of every stage by name."""
    stages = _Stages(shape, settings, lengths, place)
    return {name: getattr(stages, name)() for name in STAGES}


def weight_bytes(shape: Shape, place: Placement) -> float:
    """Bytes of the base's weights; only the linear layers of the blocks are ever quantized."""
    if place.bits is None:
        return shape.parameters * place.size
    quantized = shape.block_weights
    return quantized * BYTES_OF_BITS[place.bits] + (shape.parameters - quantized) * place.size


@dataclass(frozen=True)
class _Stages:
    shape: Shape
    settings: Settings
    lengths: Lengths
    place: Placement

    @property
    def base(self) -> Peak:
        """The weights; for a quantized base also one matrix, dequantized while it is used."""
        weights = Peak({"weights": weight_bytes(self.shape, self.place)})
        if self.place.bits is None:
            return weights
        return weights + Peak({"working memory": self._largest_matrix * self.place.size})

    @property
    def _largest_matrix(self) -> int:
        return max((linear.weights for linear in self.shape.linears), default=0)

    def reading(self, rows: int, width: int, shared: int, **more: Any) -> Pass:
        """A forward pass; the shared prefix runs once where that is worthwhile."""
        saved = shared * (rows - 1)
        shared = shared if is_worthwhile(saved, torch.device(self.place.device)) else 0
        return Pass(self.shape, rows, width, shared, **{"size": self.place.size, **more})

    def answers(self, rows: int, prompt: int, shared: int, new: int, *, drawn: bool) -> Peak:
        """Generation: the KV cache, and the larger of the prompt's pass and a decoding step.

        A step copies the keys and values of one block, one token longer, and repeats them for
        every head. Logits exist in the model's dtype and in float32; sampling adds probabilities,
        their cumulative sums and filtered scores of the same size.
        """
        s, size = self.shape, self.place.size
        whole = replace(self.reading(rows, prompt, shared), width=prompt + new)
        prompt_pass = self.reading(rows, prompt, shared)
        inside = prompt_pass.alive - (prompt_pass.cache if prompt_pass.shared else 0)
        step = 2 * (s.keys + s.queries) * size * rows * whole.width
        logits = rows * s.vocabulary * (size + FLOAT32 * (4 if drawn else 1))
        return Peak(
            {"KV cache": whole.cache, "working memory": max(inside, step), "logits": logits}
        )

    def rows_of_answers(self, tokens: int, size: int) -> int:
        """Answers per batch, as `safesteer.models.batch_size` chooses them."""
        if self.settings.evaluate.advanced.batch_size:
            return self.settings.evaluate.advanced.batch_size
        if self.place.device == "cpu":
            return rows_on_cpu(tokens)
        if self.place.gpu_memory is None:
            return CUDA_ROWS
        s = self.shape
        token = token_bytes(size, s.layers, s.keys, s.width)
        return rows_on_gpu(self.place.gpu_memory, weight_bytes(s, self.place), tokens, token)

    def load(self) -> Peak:
        """The weights; a GGUF file is read at once, and dequantized to float32 on the CPU."""
        if not self.place.gguf or self.place.device != "cpu":
            return Peak({"weights": weight_bytes(self.shape, self.place)})
        return Peak({"weights": FLOAT32 * self.shape.parameters, "GGUF file": self.place.gguf})

    def direction(self) -> Peak:
        """Activation means, scores of candidates, and steered answers.

        Means keep the last positions of every block's input as slices, which keep the whole
        tensors alive: L tensors [B, S, D]. Scoring keeps block inputs on purpose, up to 1 GiB, and
        batches rows of several candidates.
        """
        s, lengths, chosen = self.shape, self.lengths, self.settings.direction.advanced
        width = lengths.prompt + lengths.opening
        rows = min(PROMPTS_AT_ONCE, chosen.train_prompts)
        means = self.reading(rows, width, lengths.prefix)
        entered = s.layers * means.tokens * s.width * self.place.size
        taking = Peak({"block inputs": entered, "working memory": means.alive})

        allowed = int(s.layers * (1 - chosen.drop_last_layers))
        layers = len([i for i in chosen.layers or range(1, s.layers) if i < allowed])
        read = self.reading(chosen.validation_prompts, lengths.prompt, lengths.prefix)
        kept = min(KEPT_BYTES, layers * read.tokens * s.width * self.place.size)
        batch = self.reading(SCORED_ROWS[self.place.device], lengths.prompt, lengths.prefix)
        scoring = Peak(
            {
                "block inputs": kept,
                "working memory": batch.alive,
                # The base's and a candidate's, with the terms of their KL.
                "logits": 5 * FLOAT32 * chosen.validation_prompts * s.vocabulary,
            }
        )
        steered = self.answers(
            OBSERVED, lengths.prompt, lengths.prefix, OBSERVED_TOKENS, drawn=False
        )
        return self.base + _largest(taking, scoring, steered)

    def tokens(self) -> Peak:
        """The teacher's continuations, then the hidden states of both models on them.

        Comparing one position takes logits, log-probabilities and probabilities of both models and
        their differences: about eight tensors [B, V] in float32.
        """
        s, lengths, chosen = self.shape, self.lengths, self.settings.tokens
        rows = min(PROMPTS_AT_ONCE, chosen.advanced.num_prompts * chosen.num_generations)
        horizon = chosen.horizon
        answers = self.answers(rows, lengths.teacher, lengths.teacher_prefix, horizon, drawn=True)
        read = self.reading(rows, lengths.teacher + horizon, lengths.teacher_prefix)
        states = 2 * rows * horizon * s.width * self.place.size
        contrast = 8 * FLOAT32 * rows * s.vocabulary + 4 * 8 * s.vocabulary
        return self.base + _largest(
            answers,
            Peak({"hidden states": states, "working memory": read.alive}),
            Peak({"hidden states": states, "logits": contrast}),
        )

    def train(self) -> Peak:
        """Rollouts, the teacher's passes, and the student's forward and backward passes."""
        s, lengths, chosen = self.shape, self.lengths, self.settings.train
        completion, per_step = chosen.max_completion_length, chosen.completions_per_step
        window = per_step * chosen.steps_per_generation
        micro = min(chosen.per_device_train_batch_size or per_step, per_step)
        prompt = min(lengths.prompt, chosen.advanced.max_prompt_length)
        teacher = lengths.teacher - lengths.prompt + prompt
        # The teacher's, for all completions of a generation.
        states = Peak({"hidden states": window * completion * s.width * self.place.size})
        rollout = self.answers(
            min(ANSWERS_AT_ONCE, window), prompt, lengths.prefix, completion, drawn=True
        )
        at_once = min(window, max(1, TEACHER_BATCH_TOKENS // (teacher + completion)))
        reading = self.reading(at_once, teacher + completion, lengths.teacher_prefix)
        teaching = states + Peak({"working memory": reading.alive})
        return self._trained() + _largest(
            rollout, teaching, states + self._student(micro, prompt, micro < per_step)
        )

    def evaluate(self) -> Peak:
        """Answers to as many prompts as fit, then drift: base and trained model on the answers."""
        s, lengths, chosen = self.shape, self.lengths, self.settings.evaluate
        new = chosen.max_new_tokens
        trained = s.parameters * self.place.size
        if self.settings.train.method == "lora":
            trained = FLOAT32 * s.lora_parameters(self.settings.train.lora)
        weights = self.base + Peak({"trained weights": trained})
        rows = self.rows_of_answers(lengths.teacher + new, self.place.size)
        answers = self.answers(rows, lengths.teacher, lengths.teacher_prefix, new, drawn=False)
        return weights + _largest(answers, self._drift_that_fits(weights))

    def _drift_that_fits(self, weights: Peak) -> Peak:
        """Drift in float32, with batches halved until they fit, else in the model's dtype."""
        tokens = self.lengths.prompt + self.settings.evaluate.max_new_tokens
        available = self.place.gpu_memory or math.inf
        if self.place.bits != 8:
            rows = self.rows_of_answers(tokens, FLOAT32)
            while rows > 1 and (weights + self._drift(rows, FLOAT32)).bytes > available:
                rows //= 2
            drift = self._drift(rows, FLOAT32)
            if (weights + drift).bytes <= available:
                return drift
        return self._drift(self.rows_of_answers(tokens, self.place.size), self.place.size)

    def _drift(self, rows: int, size: int) -> Peak:
        """Both models on the answers with numbers of `size` bytes, one block upcast at a time."""
        s, lengths, new = self.shape, self.lengths, self.settings.evaluate.max_new_tokens
        read = self.reading(rows, lengths.prompt + new, lengths.prefix, size=size)
        widened = 0
        if size > self.place.size:
            widened = s.largest_block(quantized=self.place.bits is not None)
            if self.place.bits is not None:
                widened += self._largest_matrix
        return Peak(
            {
                "hidden states": 2 * read.states,
                "working memory": read.alive,
                "block in float32": FLOAT32 * widened,
                "logits": 5 * FLOAT32 * new * s.vocabulary,
            }
        )

    def _trained(self) -> Peak:
        """The weights, and what training holds throughout: adapter, optimizer, frozen teacher."""
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
        parts: dict[str, float] = {"adapter": FLOAT32 * adapters}
        parts["optimizer"] = 2 * FLOAT32 * adapters
        if chosen.lora.kfac_damping is not None:
            parts["K-FAC factors"] = FLOAT32 * sum(
                each.inputs**2 + each.outputs**2 for each in s.adapted(chosen.lora)
            )
        return self.base + Peak(parts)

    def _student(self, micro: int, prompt: int, accumulates: bool) -> Peak:
        """The start of the backward pass; its end, if larger, when all weights are trained.

        On the CPU attention is eager, and training of all weights computes in float32. On GPUs
        attention is fused, and autocast keeps a bfloat16 copy of every matrix.
        """
        s, chosen, place = self.shape, self.settings.train, self.place
        full, cpu = chosen.method == "full", place.device == "cpu"
        width = prompt + chosen.max_completion_length
        shared = 0 if chosen.gradient_checkpointing else self.lengths.prefix
        size = FLOAT32 if full and cpu else place.size
        batch = self.reading(micro, width, shared, size=size, fused=not cpu)
        if chosen.gradient_checkpointing:  # all block inputs, and one block recomputed
            kept = s.layers * batch.states + batch.kept(chosen)
        else:
            first = 0 if full else first_layer(chosen.lora)
            kept = (s.layers - first) * batch.kept(chosen)
        positions = micro * chosen.max_completion_length
        # Logits and probabilities in float32 and in the model's dtype; both models' of all tokens.
        whole = chosen.loss_tokens == "all" or (
            chosen.anchor_share > 0
            and (chosen.anchor_tokens == "all" or chosen.wrong_refusals == "repair")
        )
        block = min(BLOCK, positions * s.vocabulary)
        parts: dict[str, float] = {
            "saved activations": kept,
            "working memory": max(batch.backward, batch.cache if batch.shared else 0),
            "hidden states": 4 * positions * s.width * size,
            "logits": block * FLOAT32 * (8 if whole else 5),
        }
        if cpu:
            parts["malloc overhead"] = MALLOC_OVERHEAD * sum(parts.values())
        if not full:
            adapters = s.lora_parameters(chosen.lora)
            # A copy of the factors in the model's dtype is kept, too.
            return Peak({**parts, "gradients": (FLOAT32 + size) * adapters})
        if not cpu:
            parts["bfloat16 copies"] = 2 * s.block_weights
        # Gradients of the output matrix: over the vocabulary, over S, and their sum.
        begins = Peak({**parts, "gradients": 3 * FLOAT32 * s.vocabulary * s.width})
        everything = Peak({"gradients": FLOAT32 * s.parameters})
        if accumulates:
            return begins + everything
        return _largest(begins, everything)


def _largest(*peaks: Peak) -> Peak:
    return max(peaks, key=lambda peak: peak.bytes)
