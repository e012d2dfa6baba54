"""Requirements on figures, such as ``harmful>=90``, and whether an evaluation meets them.

The 95% interval counts: its end on the wrong side of the bound fails the requirement. Shares are in
percent, changes in points, `divergence` in nats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safesteer.errors import InputError, SafeSteerError, nearest
from safesteer.evaluate.benchmarks.table import find_benchmark
from safesteer.evaluate.metrics import DRIFT
from safesteer.evaluate.statistics import unpaired_interval
from safesteer.report.compare import Entrant, why_not_comparable
from safesteer.report.results import paired
from safesteer.report.words import Entry, number, percent

_FORM = re.compile(r"([\w.+-]+?)\s*(>=|<=)\s*([+-]?\d+(?:\.\d+)?)\s*%?")


@dataclass(frozen=True)
class Requirement:
    """A bound on one figure."""

    name: str  # of a benchmark, or of an entry of drift
    at_least: bool  # whether the bound is the least that is allowed, not the most
    bound: float  # percent or points; nats for divergence

    def __str__(self) -> str:
        return f"{self.name}{'>=' if self.at_least else '<='}{self.bound:g}"

    @property
    def scaled(self) -> float:
        """The bound as figures are stored: a share of 1, or nats."""
        return self.bound if self.name == "divergence" else self.bound / 100

    def met_by(self, value: float) -> bool:
        """Whether a stored figure keeps the bound."""
        return value >= self.scaled if self.at_least else value <= self.scaled


@dataclass(frozen=True)
class Outcome:
    """One requirement of a gate, met or not."""

    name: str
    passed: bool
    words: str  # the figure, and why it fails

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {self.words}"


def parse_requirements(text: str, *, changes: bool = False) -> list[Requirement]:
    """Read ``NAME>=BOUND`` and ``NAME<=BOUND``, separated by commas.

    With `changes` the bounds are on differences, in points, and may be negative.

    Raises:
        InputError: a requirement has another form, or a bound that no figure can have.
    """
    example = "harmful>=-2" if changes else "harmful>=90, harmless<=5"
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _FORM.fullmatch(part)
        if match is None:
            raise InputError(
                f"--require: '{part}' is no requirement. Try: --require '{example}', in quotes"
            )
        requirement = Requirement(match[1], match[2] == ">=", float(match[3]))
        low, high = (-100.0, 100.0) if changes else (0.0, 100.0)
        if requirement.name != "divergence" and not low <= requirement.bound <= high:
            raise InputError(
                f"--require: {requirement} is out of range. Try: a bound from {low:g} to {high:g}"
            )
        in_percent = not changes and requirement.name != "divergence"
        if in_percent and requirement.at_least and 0 < requirement.bound < 1:
            raise InputError(
                f"--require: {requirement} asks for less than one percent. Try:"
                f" {requirement.name}>={100 * requirement.bound:g}, since bounds are in percent"
            )
        found.append(requirement)
    if not found:
        raise InputError(f"--require names nothing. Try: --require '{example}'")
    return found


def check_figures(
    requirements: Sequence[Requirement], entries: Mapping[str, Entry], *, point: bool = False
) -> list[Outcome]:
    """Hold the entries of an evaluation to requirements, by the value alone if `point`."""
    outcomes = []
    for requirement in requirements:
        entry = entries.get(requirement.name)
        if entry is None or entry.get("value") is None:
            words = "not measured" if entry is None else "no verdict"
            outcomes.append(Outcome(str(requirement), False, words))
            continue
        low, high = entry.get("ci95") or (None, None)
        found = _outcome(requirement, entry["value"], (low, high), point)
        words = f"{found.words}, {entry['n']} prompts"
        outcomes.append(Outcome(found.name, found.passed, words))
    return outcomes


def check_changes(
    requirements: Sequence[Requirement], entrants: Sequence[Entrant], *, point: bool = False
) -> list[Outcome]:
    """Hold the difference of each entrant from the first to requirements.

    The interval is that of the same prompts, where both sides have their answers. Evaluation files
    have none: then it is that of independent samples, which is wider.

    Raises:
        InputError: a figure is missing on a side, or the two are not comparable.
    """
    if len(entrants) < 2:
        raise InputError("--require compares with the first run. Try: name a second one")
    first, *others = entrants
    for requirement in requirements:
        for entrant in entrants:
            if requirement.name not in entrant.benchmarks:
                raise _unknown(requirement, f"{entrant.name} has no", entrant.benchmarks)
    return [
        _change(requirement, first, other, point)
        for requirement in requirements
        for other in others
    ]


def check_measured(requirements: Iterable[Requirement], measured: Sequence[str], what: str) -> None:
    """Raise InputError for a requirement on a figure that `what` does not measure."""
    for requirement in requirements:
        name = requirement.name
        if name not in measured:
            if name not in DRIFT and not nearest(name, measured):
                find_benchmark(name)
                raise InputError(
                    f"--require {requirement}: {what} does not measure {name}. Try: --benchmarks"
                    f" {name}, or one of {', '.join(measured)}"
                )
            raise _unknown(requirement, f"{what} does not measure", measured)


def check_measurable(requirements: Iterable[Requirement]) -> None:
    """Raise InputError for a requirement on a figure that no plain model can be measured by."""
    for requirement in requirements:
        if requirement.name in DRIFT:
            raise InputError(
                f"--require {requirement}: {requirement.name} compares a run's aligned model with"
                " its base. Try: `safesteer eval RUN` without settings"
            )
        find_benchmark(requirement.name)


def raise_failed(outcomes: Sequence[Outcome]) -> None:
    """Raise SafeSteerError, which names the failed ones, unless all requirements are met."""
    if failed := [outcome.name for outcome in outcomes if not outcome.passed]:
        raise SafeSteerError(
            f"{len(failed)} of {len(outcomes)} requirements failed: {', '.join(failed)}"
        )


def _change(requirement: Requirement, first: Entrant, other: Entrant, point: bool) -> Outcome:
    name = requirement.name
    before, after = first.benchmarks[name], other.benchmarks[name]
    if reason := why_not_comparable(name, first, other):
        raise InputError(
            f"--require: {name} of {other.name} is not comparable with {first.name}: {reason}."
            " Try: evaluate both in the same way"
        )
    title = f"{requirement} ({other.name} against {first.name})"
    if before.get("value") is None or after.get("value") is None:
        return Outcome(title, False, "no verdict")
    found = paired(after, other.samples.get(name, []), before, first.samples.get(name, []))
    if found is not None:
        value, interval, how = found["value"], found["ci95"], f"{found['n']} pairs"
    else:
        value, how = after["value"] - before["value"], "unpaired"
        interval = unpaired_interval(
            (before["value"], *(before.get("ci95") or (None, None))),
            (after["value"], *(after.get("ci95") or (None, None))),
        )
    made = _outcome(requirement, value, interval, point, signed=True)
    return Outcome(title, made.passed, f"{made.words}, {how}")


def _outcome(
    requirement: Requirement,
    value: float,
    interval: Sequence[float | None],
    point: bool,
    *,
    signed: bool = False,
) -> Outcome:
    def shown(figure: float) -> str:
        if requirement.name == "divergence":
            return f"{number(figure)} nats"
        return f"{100 * figure:+.1f} points" if signed else percent(figure)

    low, high = interval
    words = shown(value)
    if low is not None and high is not None:
        words += f" (95% {shown(low)} to {shown(high)})"
    counted = value if point else low if requirement.at_least else high
    passed = counted is not None and requirement.met_by(counted)
    if not passed and counted is not value:
        if counted is None:
            words += ", no interval"
        elif requirement.met_by(value):
            words += ", the interval reaches beyond the bound"
    return Outcome(str(requirement), passed, words)


def _unknown(requirement: Requirement, problem: str, known: Iterable[str]) -> InputError:
    names = [name for name in known if name != requirement.name]
    return InputError(
        f"--require {requirement}: {problem} '{requirement.name}'"
        f"{nearest(requirement.name, names)}. Try: one of {', '.join(names)}"
    )
