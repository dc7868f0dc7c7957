"""Paired comparisons of classifiers, against a slow count of everything that could have happened."""

import itertools
from math import comb

import numpy as np
import pytest

from vidflow.models.tasks.metrics.paired import mcnemar_p, paired_interval


def _slow_p(gained: int, lost: int) -> float:
    """Sum the probabilities of all fair coin tosses that are as unlikely as what was seen."""
    total = gained + lost
    seen = comb(total, gained)
    return sum(comb(total, k) for k in range(total + 1) if comb(total, k) <= seen) / 2**total


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (2, 9), (15, 4), (0, 12)])
def test_mcnemars_p_is_the_share_of_coin_tosses_as_unlikely_as_ours(gained, lost):
    first = np.array([False] * gained + [True] * lost + [True] * 7 + [False] * 5)
    second = np.array([True] * gained + [False] * lost + [True] * 7 + [False] * 5)
    assert mcnemar_p(first, second) == pytest.approx(_slow_p(gained, lost))


def test_the_paired_interval_is_that_of_all_resamples():
    first = np.array([True, True, False, False, True, False])
    second = np.array([True, False, True, True, True, False])
    every = itertools.product(range(6), repeat=6)
    differences = [np.mean(second[list(rows)].astype(int) - first[list(rows)].astype(int)) for rows in every]
    assert paired_interval(first, second) == pytest.approx(np.percentile(differences, (2.5, 97.5)), abs=1e-9)


def test_pairing_sees_what_two_intervals_of_their_own_do_not():
    # 1,000 clips; the second loses 12 that the first has right, and gains none.
    first = np.arange(1000) < 700
    second = np.arange(1000) < 688
    low, high = paired_interval(first, second)
    assert mcnemar_p(first, second) < 0.001
    assert high < 0
    assert low > -0.025  # the interval of one accuracy alone is twice as wide
