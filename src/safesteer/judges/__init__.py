"""Judges of answers: refusal patterns, guard models, a model behind an endpoint."""

from safesteer.judges.registry import judge_names, make_judge, win_rate_judge
from safesteer.judges.verdict import Judge, Progress, Verdict

__all__ = ["Judge", "Progress", "Verdict", "judge_names", "make_judge", "win_rate_judge"]
