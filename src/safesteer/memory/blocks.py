"""Bytes of one pass through a model, from its shape: what is alive at once, what a gradient keeps.

D width, F intermediate width, L blocks, H heads of dimension d, K heads of keys, V vocabulary; a
bytes of an activation. Every figure is for the largest moment of a pass, so it is an upper bound
that real passes reach, except where tensors of several moments are freed later than they could be.
Blocks are taken to be attention and a gated feed-forward part, as those of Llama, Qwen and Gemma;
of experts and state-space blocks the weights are right and the activations are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from safesteer.config.settings import TrainSettings
from safesteer.memory.shape import Shape

# Linear layers that read the same tensor: it is kept once for all of them.
_READS_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
FLOAT32 = 4


@dataclass(frozen=True)
class Pass:
    """A batch on its way through the model.

    Attributes:
        shape: of the model.
        rows: B, sequences in the batch.
        width: S, tokens of each sequence, padding included.
        shared: P, tokens that all of them begin with and that are run once; 0: none.
        size: a, bytes of an activation.
        fused: attention never writes down its scores; the plain kind writes [B, H, T, S].
    """

    shape: Shape
    rows: int
    width: int
    shared: int = 0
    size: int = 2
    fused: bool = True

    @property
    def tokens(self) -> int:
        """B x T, the tokens that are computed."""
        return self.rows * (self.width - self.shared) + self.shared

    @property
    def cache(self) -> int:
        """Keys and values of all blocks: 2 L K d for every token, also those that are shared."""
        return 2 * self.shape.layers * self.shape.keys * self.size * self.rows * self.width

    @property
    def states(self) -> int:
        """One tensor of hidden states, [B, S, D]."""
        return self.rows * self.width * self.shape.width * self.size

    @property
    def alive(self) -> int:
        """What is alive at once inside a block when nothing is kept for a gradient.

        In the feed-forward part: the block's input, the residual, what the norm gave (D each), and
        the gate, the up-projection and their product (F each). In attention: input and norm (D
        each), four tensors of the queries' width while they are rotated, keys and values, both of
        them repeated for every head. And the mask, which becomes numbers of the model's type.
        """
        s = self.shape
        feed_forward = 3 * s.width + 3 * s.intermediate
        attention = 2 * s.width + 6 * s.queries + 2 * s.keys
        mask = (1 + self.size) * self.tokens * self.width
        scores = 0 if self.fused else 3 * self.size * s.heads * self.tokens * self.width
        # The hidden states come back in the batch's own order, as a tensor of their own.
        return (
            self.size * self.tokens * max(feed_forward, attention)
            + mask
            + scores
            + (self.cache if self.shared else 0)
            + (self.states if self.shared else 0)
        )

    def kept(self, train: TrainSettings) -> int:
        """What one trained block keeps for the backward pass.

        Norms keep their input in float32 (4 D each; all weights trained: what they gave as well);
        adapted linear layers what they read, and what comes out of the first factor; attention the
        queries, the keys and values repeated for every head, and its probabilities (in float32 and
        in the model's type) or, fused, its result; the feed-forward part the gate before and after
        its activation and the up-projection (F each).
        """
        s, lora = self.shape, train.lora
        full = train.method == "full"
        top = [x for x in (s.linears if full else s.adapted(lora)) if x.layer == s.layers - 1]
        read = {_READS_WITH.get(linear.name, linear.name): linear.inputs for linear in top}
        numbers = s.queries + 3 * s.intermediate + sum(read.values())
        if self.fused:
            numbers += s.queries
        if not full:
            numbers += lora.r * len(top)
        norms = FLOAT32 * 2 * s.width * (2 if full else 1)
        scores = 0 if self.fused else self._score_bytes * s.heads * self.width
        repeated = 2 * s.queries * self.size * self.rows * self.width  # also of what is shared
        return self.tokens * (self.size * numbers + norms + scores) + repeated

    @property
    def backward(self) -> int:
        """What is alive in a block's backward pass beside what is kept, with plain attention.

        In the feed-forward part the gradients of product, gate and up-projection, each from the
        layer and from its adapter before they are added (5 F), and of the residual in float32 and
        in the model's type. In attention those of the probabilities, on both sides of the softmax.
        """
        s = self.shape
        feed_forward = self.size * 5 * s.intermediate + (self.size + 2 * FLOAT32) * s.width
        scores = 2 * (FLOAT32 + self.size) * s.heads * self.width
        attention = self.size * 4 * s.queries + (0 if self.fused else scores)
        return self.tokens * max(feed_forward, attention)

    @property
    def _score_bytes(self) -> int:
        return FLOAT32 if self.size == FLOAT32 else FLOAT32 + self.size
