"""Memory of one pass through a model, from its shape: working memory and saved activations.

D: width, F: intermediate width, L: blocks, H: heads of dimension d, K: key heads, V: vocabulary,
a: bytes of an activation. Figures are for the largest moment of a pass: an upper bound, unless
tensors are freed later than they could be. Blocks are taken to be attention and a gated
feed-forward part, as in Llama, Qwen and Gemma. For experts and state-space blocks the weights are
right and the activations are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from safesteer.config.settings import TrainSettings
from safesteer.memory.shape import Shape

# Linear layers with the same input, which is saved once for all of them.
_READS_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
FLOAT32 = 4


@dataclass(frozen=True)
class Pass:
    """One batch through the model; eager attention, not `fused`, holds its scores [B, H, T, S]."""

    shape: Shape  # dimensions of the model
    rows: int  # B, sequences in the batch
    width: int  # S, tokens of each sequence, padding included
    shared: int = 0  # P, length of the common prefix that runs once; 0 for none
    size: int = 2  # a, bytes of an activation
    fused: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.rows * (self.width - self.shared) + self.shared

    @property
    def cache(self) -> int:
        """KV cache of all blocks: 2 L K d per token, shared ones included."""
        return 2 * self.shape.layers * self.shape.keys * self.size * self.rows * self.width

    @property
    def states(self) -> int:
        """One tensor of hidden states, [B, S, D]."""
        return self.rows * self.width * self.shape.width * self.size

    @property
    def alive(self) -> int:
        """Working memory of a block, when nothing is saved for a gradient.

        Feed-forward: the block's input, the residual, the norm's output (D each), and the gate, the
        up-projection and their product (F each). Attention: input and norm (D each), four tensors
        of the queries' width during rotation, keys and values, and both repeated for every head.
        The mask exists as booleans and in the model's dtype.
        """
        s = self.shape
        feed_forward = 3 * s.width + 3 * s.intermediate
        attention = 2 * s.width + 6 * s.queries + 2 * s.keys
        mask = (1 + self.size) * self.tokens * self.width
        scores = 0 if self.fused else 3 * self.size * s.heads * self.tokens * self.width
        # Hidden states are returned in the batch's order, as a separate tensor.
        return (
            self.size * self.tokens * max(feed_forward, attention)
            + mask
            + scores
            + (self.cache + self.states if self.shared else 0)
        )

    def kept(self, train: TrainSettings) -> int:
        """Activations that one trained block saves for the backward pass.

        Norms save their input in float32 (4 D each; their output too, when all weights are
        trained); adapted linear layers their input, and the output of the first LoRA factor;
        attention the queries, the keys and values repeated for every head, and its probabilities
        (in float32 and in the model's dtype) or, if fused, its output; the feed-forward part the
        gate before and after its activation and the up-projection (F each).
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
        score = FLOAT32 if self.size == FLOAT32 else FLOAT32 + self.size
        scores = 0 if self.fused else score * s.heads * self.width
        repeated = 2 * s.queries * self.size * self.rows * self.width  # of the prefix, too
        return self.tokens * (self.size * numbers + norms + scores) + repeated

    @property
    def backward(self) -> int:
        """Working memory of a block's backward pass.

        Feed-forward: the gradients of product, gate and up-projection, from the layer and from its
        adapter before they are added (5 F), and of the residual in float32 and in the model's
        dtype. Attention: the gradients of the probabilities on both sides of the softmax.
        """
        s = self.shape
        feed_forward = self.size * 5 * s.intermediate + (self.size + 2 * FLOAT32) * s.width
        scores = 2 * (FLOAT32 + self.size) * s.heads * self.width
        attention = self.size * 4 * s.queries + (0 if self.fused else scores)
        return self.tokens * max(feed_forward, attention)
