import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btm_core.config import load_experiment
from btm_core.errors import ConfigError, DataError
from btm_core.soups import adaptive_weights, criterion, greedy_soup


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30))
def test_adaptive_weights_sum_to_one_and_keep_the_order(scores: list[float]) -> None:
    weights = adaptive_weights(scores)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights * scores[0], weights[0] * np.array(scores))


def test_scores_that_are_no_scores_are_refused() -> None:
    for scores in ([], [0.5, 0.0], [[0.1]]):
        with pytest.raises(DataError):
            adaptive_weights(scores)


@given(st.data(), st.integers(1, 8))
def test_a_greedy_soup_is_never_worse_than_its_best_ingredient(data: st.DataObject, count: int) -> None:
    """Whatever the criterion says of the averages."""
    value = st.floats(0, 1)
    table: dict[tuple[int, ...], float] = {(i,): data.draw(value) for i in range(count)}

    def evaluate(members: object) -> float:
        key = tuple(sorted(members))  # type: ignore[call-overload]
        return table.setdefault(key, data.draw(value))

    scores = [table[(i,)] for i in range(count)]
    members = greedy_soup(scores, evaluate)
    assert table[tuple(sorted(members))] >= max(scores)
    assert members[0] == scores.index(max(scores))
    assert len(set(members)) == len(members)


def test_a_greedy_soup_takes_what_helps_and_leaves_what_harms() -> None:
    worth = [0.5, 0.9, 0.2, 0.7]

    def evaluate(members: object) -> float:
        return 0.9 if 2 not in members else 0.1  # type: ignore[operator]

    assert greedy_soup(worth, evaluate) == [1, 3, 0]


def test_the_criterion_against_plain_numbers() -> None:
    y = np.array([0, 0, 0, 0, 1, 3])
    p = np.array([0, 0, 0, 1, 0, 3])
    recall = np.array([3.5 / 5, 0.5 / 2, 1.5 / 2])  # class 2 has no image and does not count
    assert criterion(y, p, "h_mean") == pytest.approx(3 / (1 / recall).sum())
    assert criterion(y, p, "g_mean") == pytest.approx(recall.prod() ** (1 / 3))
    with pytest.raises(DataError):
        criterion([], [], "h_mean")


def test_choosing_on_the_test_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing may be chosen on the test split"):
        load_experiment("digits-lt", ["merge.strategy=greedy_h_mean", "merge.criterion=test"])
