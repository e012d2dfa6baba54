"""The safety tokens S: the tokens on which teacher and base disagree most.

The teacher continues each prompt; at every position of every continuation both models' next-token
distributions are compared. Only sums over the vocabulary are kept ([V] each), never a
[samples, H, V] tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from safesteer.config.settings import TokenSettings
from safesteer.errors import SafeSteerError
from safesteer.events import Progress
from safesteer.models.base_weights import base_weights
from safesteer.models.chat import Message
from safesteer.models.context import fitting_prompts
from safesteer.models.generate import Decoding, end_of_turn_ids, generate
from safesteer.models.hidden_states import completion_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.load import ChatModel
from safesteer.models.oom import in_batches
from safesteer.teacher import Teacher


@dataclass(frozen=True)
class SafetyToken:
    """A token of S, and the evidence for it.

    `votes` counts the positions at which it was among the `votes_per_position` tokens with the
    largest log p_teacher - log p_base.
    """

    id: int
    text: str
    votes: int
    mass: float  # sum over positions of |p_teacher - p_base|
    p_base: float  # mean probability under the base
    p_teacher: float  # mean probability under the teacher


@dataclass(frozen=True)
class SafetyTokens:
    """The safety tokens S."""

    tokens: list[SafetyToken]  # the strongest first
    coverage: float  # their share of sum |p_teacher - p_base| over the vocabulary, in [0, 1]
    positions: int  # compared positions of the continuations
    settings: TokenSettings  # how S was found

    @property
    def ids(self) -> list[int]:
        """Ids of the tokens, the strongest first."""
        return [token.id for token in self.tokens]

    def to_json(self) -> dict[str, Any]:
        """The content of tokens/safety_tokens.json."""
        return {
            "method": self.settings.method,
            "tokens": [vars(token) for token in self.tokens],
            "coverage": self.coverage,
            "positions": self.positions,
            **{
                key: getattr(self.settings, key)
                for key in ("prompts", "horizon", "num_generations")
            },
            **self.settings.advanced.model_dump(),
        }


@torch.no_grad()
def select_safety_tokens(
    model: ChatModel,
    teacher: Teacher,
    prompts: Sequence[Sequence[Message]],
    settings: TokenSettings | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> SafetyTokens:
    """Choose S on the teacher's own continuations of `prompts`.

    A model that thinks continues after an empty thinking block. Seeds torch's generator.

    Args:
        model: the base.
        teacher: its teacher.
        prompts: conversations that end with a harmful request.
        settings: size of S, method, number and length of continuations; the defaults if None.
        seed: of the sampled continuations.
        batch_size: sequences in a batch.
        progress: called with the continuations done and all.

    Raises:
        PromptTooLong: no prompt fits into the model's positions.
        SafeSteerError: no token passes the filters, or every continuation is empty.

    Source: SafeSteer (arXiv 2606.02530), section 3.2.
    """
    settings = settings or TokenSettings()
    model = model.without_thinking
    torch.manual_seed(seed)
    chat, device = model.chat, model.model.device
    read_by_teacher = [chat.ids(teacher.messages(messages)) for messages in prompts]
    fits = fitting_prompts(model.model, read_by_teacher, settings.horizon, "prompts of the tokens")
    samples = [list(prompts[row]) for row in fits for _ in range(settings.num_generations)]
    taught = [chat.ids(teacher.messages(messages)) for messages in samples]
    plain = [chat.ids(messages) for messages in samples]
    with teacher.active(model.model):
        continuations = generate(
            model.model,
            chat.tokenizer,
            taught,
            Decoding(settings.horizon, teacher.temperature),
            batch_size=batch_size,
            progress=progress,
        )
    head = OutputHead.of(model.model)
    sums = _Contrast(
        head,
        head.with_temperature(teacher.temperature),
        settings.advanced.votes_per_position,
        device,
    )
    ends = torch.tensor(end_of_turn_ids(model.model, chat.tokenizer), device=device)

    def read(rows: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        tails = [continuations[row] for row in rows]
        pad_id = chat.tokenizer.pad_token_id
        with teacher.active(model.model):
            states_t = completion_states(model.model, [taught[row] for row in rows], tails, pad_id)
        with base_weights(model.model):
            states_0 = completion_states(model.model, [plain[row] for row in rows], tails, pad_id)
        return states_t, states_0

    for _, (states_t, states_0) in in_batches(taught, batch_size, read, device):
        sums.add(states_t, states_0, ends)
    return _choose(sums, model, settings)


class _Contrast:
    """Running sums over positions: votes, probabilities and absolute differences, [V] each."""

    def __init__(
        self,
        head: OutputHead,
        teacher_head: OutputHead,
        votes_per_position: int,
        device: torch.device,
    ) -> None:
        self.head, self.teacher_head = head, teacher_head
        self.votes_per_position = min(votes_per_position, head.vocabulary)
        zeros = lambda: torch.zeros(head.vocabulary, dtype=torch.float64, device=device)  # noqa: E731
        self.votes, self.teacher, self.base, self.mass = zeros(), zeros(), zeros(), zeros()
        self.positions = 0

    def add(
        self,
        states_t: list[torch.Tensor],  # [T, D] of each continuation
        states_0: list[torch.Tensor],
        ends: torch.Tensor,  # tokens that end a turn
    ) -> None:
        """Compare teacher and base at each position until the base would have ended the turn."""
        hidden_t = pad_sequence(states_t, batch_first=True)  # [B, H, D]
        hidden_0 = pad_sequence(states_0, batch_first=True)
        lengths = torch.tensor([len(states) for states in states_t], device=hidden_t.device)
        alive = torch.ones_like(lengths, dtype=torch.bool)
        for position in range(hidden_t.shape[1]):
            rows = alive & (position < lengths)
            if not rows.any():
                break
            log_0 = torch.log_softmax(self.head.logits(hidden_0[:, position]), dim=-1)  # [B, V]
            log_t = torch.log_softmax(self.teacher_head.logits(hidden_t[rows, position]), dim=-1)
            alive &= ~torch.isin(log_0.argmax(-1), ends)
            log_0 = log_0[rows]
            top = (log_t - log_0).topk(self.votes_per_position, dim=-1).indices.flatten()
            self.votes += torch.bincount(top, minlength=self.head.vocabulary)
            p_t, p_0 = log_t.exp(), log_0.exp()
            self.teacher += p_t.sum(0).double()
            self.base += p_0.sum(0).double()
            self.mass += (p_t - p_0).abs().sum(0).double()
            self.positions += int(rows.sum())


def _choose(sums: _Contrast, model: ChatModel, settings: TokenSettings) -> SafetyTokens:
    if not sums.positions:
        raise SafeSteerError(
            "the teacher ended every answer at once, so there is nothing to compare. Try: another"
            " direction.source or teacher.context"
        )
    allowed = eligible(model, settings, sums.teacher / sums.positions)
    if settings.method == "vote":
        allowed &= sums.votes > 0
    # Equal votes are ordered by the teacher's probability.
    score = (
        sums.votes + sums.teacher / (sums.positions + 1) if settings.method == "vote" else sums.mass
    )
    score = torch.where(allowed, score, -torch.inf)
    count = min(settings.num_tokens, int(allowed.sum()))
    if count < 1:
        raise SafeSteerError(
            "no token has a mean teacher probability of"
            f" {settings.advanced.min_teacher_prob} or more. Try: a lower"
            " tokens.advanced.min_teacher_prob"
        )
    chosen = score.topk(count).indices.tolist()
    return SafetyTokens(
        tokens=[
            SafetyToken(
                id=i,
                text=model.tokenizer.decode([i]),
                votes=int(sums.votes[i]),
                mass=float(sums.mass[i]),
                p_base=float(sums.base[i] / sums.positions),
                p_teacher=float(sums.teacher[i] / sums.positions),
            )
            for i in chosen
        ],
        coverage=float(sums.mass[chosen].sum() / sums.mass.sum().clamp_min(1e-30)),
        positions=sums.positions,
        settings=settings,
    )


def eligible(model: ChatModel, settings: TokenSettings, probability: torch.Tensor) -> torch.Tensor:
    """Tokens that may be in S, bool [V]: likely under the teacher, and not special.

    `probability` [V] is their mean probability under the teacher.

    Source: SafeSteer (arXiv 2606.02530), section 3.2.
    """
    tokenizer = model.tokenizer
    allowed = probability >= settings.advanced.min_teacher_prob
    # Llama 3 has only two of its 256 control tokens in all_special_ids.
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if settings.advanced.end_of_turn:
        # Without them the student learns how a refusal begins but not that it ends, and repeats
        # itself.
        special -= set(end_of_turn_ids(model.model, tokenizer))
    allowed[[i for i in special if i < len(allowed)]] = False
    allowed[len(tokenizer) :] = False
    return allowed
