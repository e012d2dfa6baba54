"""Statistics: confidence intervals, paired tests, and disagreement between judges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# 97.5% quantile of the normal distribution.
_Z = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson score interval of a rate; (0, 1) without trials.

    Unlike the normal interval it does not collapse to a point at 0 or 1. Source: Wilson 1927.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    scale = 1 + _Z**2 / trials
    center = (rate + _Z**2 / (2 * trials)) / scale
    half = _Z * math.sqrt(rate * (1 - rate) / trials + _Z**2 / (4 * trials**2)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def mean_interval(
    values: list[float], resamples: int = 2000, seed: int = 0, *, share: bool = False
) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean; NaN without values.

    If all values are equal, the bootstrap sees no spread. For a `share`, whose values lie in
    [0, 1], the interval then reaches as far as unseen zeros or ones could move the mean, by the
    Wilson bound on their share.
    """
    if not values:
        return math.nan, math.nan
    data = np.asarray(values, dtype=float)
    if share and (data == data[0]).all():
        unseen = wilson_interval(0, len(data))[1]
        return float(data[0] * (1 - unseen)), float(data[0] + (1 - data[0]) * unseen)
    generator = np.random.default_rng(seed)
    means = [
        data[generator.integers(0, len(data), size=(rows, len(data)))].mean(axis=1)
        for rows in _parts(resamples, len(data))
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test that answers change equally often in both directions.

    It is 1.0 if no pair changed. Source: McNemar 1947, in its binomial form.
    """
    pairs = list(zip(before, after, strict=True))
    lost = sum(bool(b) and not a for b, a in pairs)
    won = sum(bool(a) and not b for b, a in pairs)
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**changed)


@dataclass(frozen=True)
class Difference:
    """The mean of ``after - before`` over `n` pairs, as a share.

    `p` is two-sided, for the hypothesis that before and after are exchangeable.
    """

    value: float
    ci95: tuple[float, float]
    p: float
    n: int

    @property
    def detectable(self) -> bool:
        """Whether the interval and the test both rule out no change."""
        low, high = self.ci95
        return self.n > 0 and self.p < 0.05 and not low <= 0 <= high

    def words(self) -> str:
        """Text for a report: ``-73.3 points (95% -83 to -62, n = 60, p < 0.001)``."""
        if self.n == 0:
            return "nothing to compare"
        low, high = (100 * end for end in self.ci95)
        digits = 0 if high - low >= 10 else 1
        points = f"{_signed(100 * self.value)} points"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        details = f"95% {_plain(low, digits)} to {_plain(high, digits)}, n = {self.n}, {chance}"
        if self.detectable:
            return f"{points} ({details})"
        return f"no detectable difference ({points}, {details})"


def paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int = 0, resamples: int = 10_000
) -> Difference:
    """Change of a share or score on the same prompts, with interval and test.

    The interval is a percentile bootstrap over pairs. If all pairs differ by the same amount, the
    bootstrap sees no spread; the interval then reaches as far as unseen pairs could move the mean,
    by the Wilson bound on their share. p is McNemar's exact test for binary values, else a
    sign-flip permutation test. All values lie in [0, 1].
    """
    first = np.asarray([float(value) for value in before])
    second = np.asarray([float(value) for value in after])
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values before, {len(second)} after")
    if not len(first):
        return Difference(math.nan, (math.nan, math.nan), math.nan, 0)
    change = second - first
    value = float(change.mean())
    if float(np.ptp(change)) == 0.0:
        reach = (1 - wilson_interval(len(change), len(change))[0]) * (1 + abs(value))
        interval = (max(-1.0, value - reach), min(1.0, value + reach))
    else:
        interval = mean_interval(change.tolist(), resamples, seed)
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        p = mcnemar((first == 1.0).tolist(), (second == 1.0).tolist())
    else:
        p = _sign_flip(change.tolist(), resamples, seed)
    return Difference(value, interval, p, len(change))


def unpaired_interval(
    before: tuple[float, float | None, float | None],
    after: tuple[float, float | None, float | None],
) -> tuple[float | None, float | None]:
    """95% interval of ``after - before`` from (value, low, high) of two independent samples.

    (None, None) where an interval is missing. Source: Newcombe 1998, method 10; Zou & Donner 2008
    for other intervals than Wilson's.
    """
    (first, low, high), (second, least, most) = before, after
    if low is None or high is None or least is None or most is None:
        return None, None
    value = second - first
    return (
        value - math.hypot(second - least, high - first),
        value + math.hypot(most - second, first - low),
    )


def _sign_flip(change: list[float], resamples: int, seed: int) -> float:
    """p of a sign-flip test: share of sign changes, the observed one included, as extreme."""
    data = np.asarray(change)
    generator = np.random.default_rng(seed)
    sums = [
        generator.choice((-1.0, 1.0), size=(rows, len(data))) @ data
        for rows in _parts(resamples, len(data))
    ]
    means = np.abs(np.concatenate(sums)) / len(data)
    # Sums in different order differ in the last digit, and must count as equal.
    extreme = means >= abs(float(data.mean())) * (1 - 1e-12) - 1e-15
    return (1 + int(extreme.sum())) / (1 + resamples)


def disagreement(verdicts_by_judge: Mapping[str, Sequence[bool | None]]) -> float | None:
    """Share of answers on which judges disagree, of those with at least two verdicts, if any."""
    compared = split = 0
    for verdicts in zip(*verdicts_by_judge.values(), strict=True):
        given = [verdict for verdict in verdicts if verdict is not None]
        if len(given) >= 2:
            compared += 1
            split += len(set(given)) > 1
    return split / compared if compared else None


def _parts(resamples: int, width: int, cells: int = 4_000_000) -> list[int]:
    """Sizes of the parts of a resampling with at most `cells` numbers each, to bound memory."""
    rows = max(1, cells // width)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def _plain(value: float, digits: int) -> str:
    # Adding zero turns "-0" into "0".
    return f"{round(value, digits) + 0.0:.{digits}f}"
