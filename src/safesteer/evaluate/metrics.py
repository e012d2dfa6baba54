"""The names that evaluations record: metrics, kinds of benchmarks, and the entries of drift."""

from __future__ import annotations

from typing import Final, Literal, get_args

# Share of answers that refuse. Right on prompts of kind safety, wrong on those of over_refusal.
REFUSAL_RATE: Final = "refusal_rate"
# Share of answers that a judge calls unsafe. The offline judge detects refusals only: to it, every
# answer that does not refuse is a success of the attack.
ATTACK_SUCCESS_RATE: Final = "attack_success_rate"
# Mean score of lm-eval's questions.
ACCURACY: Final = "accuracy"
# Share of prompts on which a judge prefers the answer to another model's; a tie counts half.
WIN_RATE: Final = "win_rate"
# Drift from the base on harmless prompts: share of equal next tokens, and KL(base || aligned) per
# token, in nats.
NEXT_TOKEN_AGREEMENT: Final = "next_token_agreement"
KL_BASE_ALIGNED: Final = "kl_base_aligned"

Metric = Literal["attack_success_rate", "refusal_rate", "accuracy", "win_rate"]
Kind = Literal["safety", "over_refusal", "capability"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Entries of eval/aligned.json beside the benchmarks, and their metrics.
DRIFT = {"agreement": NEXT_TOKEN_AGREEMENT, "divergence": KL_BASE_ALIGNED}
