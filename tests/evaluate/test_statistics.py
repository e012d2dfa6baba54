"""Intervals against published values, tests against hand-made ones, and their words."""

import math
from itertools import product

import numpy as np
import pytest

from safesteer.evaluate.statistics import (
    Difference,
    disagreement,
    mcnemar,
    mean_interval,
    paired_difference,
    unpaired_interval,
    wilson_interval,
)


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
    """Without trials anything is possible; impossible counts are an error."""
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
    low, high = mean_interval([1.0] * 60, share=True)
    assert (low, high) == pytest.approx(wilson_interval(60, 60))
    low, high = mean_interval([0.5] * 3, share=True)
    assert low < 0.4 and high > 0.6
    assert all(map(math.isnan, mean_interval([])))


def test_mean_interval_of_many_values_is_made_in_parts():
    """More numbers than fit in one part give the interval of the formula."""
    values = [0.0, 1.0] * 10_000
    half = 1.96 * 0.5 / math.sqrt(20_000)
    assert mean_interval(values, resamples=500) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


def changed(lost: int, won: int, same: int = 3) -> tuple[list[bool], list[bool]]:
    """Pairs of which `lost` went from true to false and `won` the other way."""
    before = [True] * lost + [False] * won + [True] * same
    after = [False] * lost + [True] * won + [True] * same
    return before, after


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 0), (3, 3), (8, 1), (2, 9), (6, 7)])
def test_mcnemar_is_the_binomial_test_of_the_changed_pairs(lost, won):
    """Counted by hand: all tosses of a fair coin that are as lopsided or more."""
    tosses = list(product((0, 1), repeat=lost + won))
    as_far = sum(abs(2 * sum(toss) - lost - won) >= abs(lost - won) for toss in tosses)
    assert mcnemar(*changed(lost, won)) == pytest.approx(as_far / len(tosses), abs=1e-12)


def test_mcnemar_is_exact_where_floats_end_and_wants_pairs():
    """Thousands of changes do not overflow; unequal lengths are an error."""
    assert mcnemar(*changed(1500, 1500)) == 1.0
    assert 0.0 <= mcnemar(*changed(3000, 100)) < 1e-300
    with pytest.raises(ValueError):
        mcnemar([True], [])


def test_paired_difference_of_refusals_in_words():
    """The sentence of the report, from 60 prompts of which 44 changed."""
    before = [1] * 50 + [0] * 10
    after = [0] * 44 + [1] * 6 + [0] * 10
    found = paired_difference(before, after)
    assert found.value == pytest.approx(-44 / 60)
    assert found.p == pytest.approx(2 / 2**44)
    assert found.detectable
    assert found.words() == "-73.3 points (95% -83 to -62, n = 60, p < 0.001)"
    assert paired_difference(before, after) == found


def test_paired_difference_that_may_be_chance_is_called_so():
    """An interval around zero, or p above 0.05, is no detectable difference."""
    found = paired_difference([1] * 4 + [0] * 56, [0] * 3 + [1] * 4 + [0] * 53)
    assert not found.detectable
    assert found.words().startswith("no detectable difference (+0.0 points, 95% ")
    few = paired_difference([1] * 5, [0] * 5)
    assert few.p == pytest.approx(0.0625)
    assert not few.detectable
    assert "no detectable" in Difference(0.02, (-0.01, 0.05), 0.01, 90).words()
    assert "no detectable" in Difference(0.02, (0.01, 0.05), 0.06, 90).words()


def test_words_never_say_minus_zero_and_keep_small_differences():
    """A digit behind the point where the interval is narrow; zero has no sign."""
    found = Difference(-0.0002, (-0.0104, -0.0001), 0.0449, 1319)
    assert found.words() == "+0.0 points (95% -1.0 to 0.0, n = 1319, p = 0.045)"
    assert paired_difference([], []).words() == "nothing to compare"


def test_equal_pairs_do_not_make_a_certain_interval():
    """60 answers that all changed, or none of which did, do not prove that all always do."""
    low, high = paired_difference([0] * 60, [0] * 60).ci95
    unseen = 1 - wilson_interval(60, 60)[0]
    assert (low, high) == pytest.approx((-unseen, unseen))
    low, high = paired_difference([1] * 60, [0] * 60).ci95
    assert low == -1.0
    assert high == pytest.approx(-1 + 2 * unseen)


def test_paired_difference_of_scores_agrees_with_the_exact_sign_flips():
    """For values between 0 and 1: p of all 2^n changes of sign, within sampling error."""
    before = [0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6]
    after = [0.3, 0.6, 0.3, 1.0, 0.5, 0.6, 0.5, 0.9]
    change = np.asarray(after) - np.asarray(before)
    means = [abs(np.dot(signs, change)) for signs in product((-1, 1), repeat=len(change))]
    exact = np.mean(np.asarray(means) >= abs(change.sum()) - 1e-9)
    assert paired_difference(before, after).p == pytest.approx(exact, abs=0.01)
    with pytest.raises(ValueError, match="before"):
        paired_difference([0.1], [])


@pytest.mark.parametrize(("n", "least"), [(30, 0.90), (100, 0.92)])
def test_bootstrap_interval_covers_the_true_difference(n, least):
    """Simulated: attack success falls from 0.7 to 0.3 on paired prompts, 400 times."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        before = generator.random(n) < 0.7
        # Seven of ten answers follow the old one, so that the pairs are dependent.
        keeps = generator.random(n) < 0.3 / 0.7
        after = before & keeps
        low, high = paired_difference(
            before.astype(float).tolist(), after.astype(float).tolist(), resamples=400
        ).ci95
        covered += low <= -0.4 <= high
    assert least <= covered / 400 <= 0.99


def test_disagreement_counts_answers_on_which_judges_differ():
    """Over answers that two judges at least gave a verdict on; judges without one do not count."""
    verdicts = {
        "one": [True, True, None, False, None],
        "two": [True, False, True, None, None],
        "three": [True, True, False, None, True],
    }
    assert disagreement(verdicts) == pytest.approx(2 / 3)
    assert disagreement({"one": [True, False]}) is None
    assert disagreement({"one": [True], "two": [None]}) is None
    assert disagreement({}) is None
    with pytest.raises(ValueError):
        disagreement({"one": [True], "two": []})


def test_the_interval_of_two_samples_is_newcombes():
    """Newcombe 1998, table II: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    first, second = ((count / n, *wilson_interval(count, n)) for count, n in ((48, 80), (56, 70)))
    assert unpaired_interval(first, second) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert unpaired_interval((0.5, None, None), second) == (None, None)
