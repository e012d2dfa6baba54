"""Judges: what an answer is, by patterns, by guard models, or by a model behind an endpoint."""

from safesteer.judges.registry import judge_names, make_judge, win_rate_judge
from safesteer.judges.verdict import Judge, Progress, Verdict

__all__ = ["Judge", "Progress", "Verdict", "judge_names", "make_judge", "win_rate_judge"]
