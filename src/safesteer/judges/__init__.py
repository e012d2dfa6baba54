"""Judges of answers: refusal patterns, guard models, a model behind an endpoint."""

from safesteer.judges.registry import JUDGES, make_judge
from safesteer.judges.verdict import Judge, Progress, Verdict

__all__ = ["JUDGES", "Judge", "Progress", "Verdict", "make_judge"]
