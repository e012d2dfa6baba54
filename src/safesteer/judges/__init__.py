"""Judges of answers: refusal patterns, guard models, a model behind an endpoint."""

from safesteer.judges.registry import JUDGES, make_judge
from safesteer.judges.verdict import Judge, Verdict

__all__ = ["JUDGES", "Judge", "Verdict", "make_judge"]
