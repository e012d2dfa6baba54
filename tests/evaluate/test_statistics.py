"""Intervals against published values."""

import math

import pytest

from safesteer.evaluate.statistics import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(successes, trials, low, high):
    """Values of Newcombe (1998) and of the closed form."""
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_without_trials_and_with_wrong_counts():
    """No trials know nothing; impossible counts are an error."""
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, trials in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(successes, trials)


def test_mean_interval_is_a_bootstrap_of_the_mean():
    """Near mean +- 1.96 standard errors, the same every time, a point where nothing varies."""
    values = [float(i % 10) for i in range(400)]
    low, high = mean_interval(values)
    half = 1.96 * math.sqrt(8.25 / 400)
    assert (low, high) == pytest.approx((4.5 - half, 4.5 + half), abs=0.06)
    assert (low, high) == mean_interval(values)
    assert mean_interval([0.25] * 5) == (0.25, 0.25)
    assert all(map(math.isnan, mean_interval([])))
