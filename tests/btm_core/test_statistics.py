import numpy as np
import pytest
from scipy import stats

from btm_core.errors import DataError
from btm_core.metrics import recall_report
from btm_core.statistics import (
    Difference,
    class_differences,
    clearly_changed,
    paired_differences,
    resampled_recall,
    sign_test,
    spread,
)


def test_spread_is_the_sample_standard_deviation() -> None:
    result = spread([1.0, 2.0, 3.0])
    assert result is not None
    assert (result.n, result.mean, result.std) == (3, 2.0, 1.0)
    one = spread([0.25])
    assert one is not None and one.std is None
    assert spread([1.0, None]) is None  # a group that is empty has no mean


def test_a_model_compared_with_itself_differs_by_nothing() -> None:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 20)
    p = np.stack([np.where(random.random(100) < 0.6, y, 0) for _ in range(3)])
    for difference in paired_differences(y, p, p).values():
        assert difference.mean == difference.low == difference.high == 0


def test_differences_are_those_of_the_recall_report_and_lie_in_their_interval() -> None:
    random = np.random.default_rng(1)
    y = np.repeat(np.arange(5), 50)
    worse = np.where(random.random(250) < 0.5, y, (y + 1) % 5)
    better = np.where(random.random(250) < 0.8, y, (y + 1) % 5)
    found = paired_differences(y, worse, better)
    reports = [recall_report(y, p, [10] * 5) for p in (worse, better)]
    worst = [float(report.recall.min()) for report in reports]  # 5 % of so few classes: one
    assert found.pop("worst_mean").mean == pytest.approx(worst[1] - worst[0], abs=1e-12)
    for name, difference in found.items():
        expected = getattr(reports[1], name) - getattr(reports[0], name)
        assert difference.mean == pytest.approx(expected, abs=1e-12)
        assert difference.low < difference.high
    assert found["mean_recall"].low > 0
    assert found["mean_recall"].low < found["mean_recall"].mean < found["mean_recall"].high


@pytest.mark.parametrize("floor", [{}, {"floor": 1e-5}])
def test_a_class_never_right_counts_as_in_the_recall_report(floor: dict[str, float]) -> None:
    y = np.repeat(np.arange(4), 25)
    worse, better = np.where(y == 3, 0, y), np.where((y == 3) & (np.arange(100) % 5 > 0), 0, y)
    found = paired_differences(y, worse, better, **floor)
    reports = [recall_report(y, p, [10] * 4, **floor) for p in (worse, better)]
    assert reports[0].h_mean == pytest.approx(4 / (3 + 1 / floor.get("floor", 1e-3)))
    worst = [float(report.recall.min()) for report in reports]  # 5 % of so few classes: one
    assert found.pop("worst_mean").mean == pytest.approx(worst[1] - worst[0], abs=1e-12)
    for name, difference in found.items():
        expected = getattr(reports[1], name) - getattr(reports[0], name)
        assert difference.mean == pytest.approx(expected, abs=1e-12)
    assert found["h_mean"].high > found["h_mean"].low > 0


def test_resampling_equals_drawing_images_one_by_one() -> None:
    random = np.random.default_rng(2)
    y = np.repeat(np.arange(2), [30, 8])
    p = np.stack([np.where(random.random(38) < share, y, 1 - y) for share in (0.4, 0.7)])
    fast = resampled_recall(y, p, 20_000)
    slow = np.empty((20_000, 2, 2))
    for c in range(2):
        right = p[:, y == c] == c
        drawn = random.integers(0, right.shape[1], (20_000, right.shape[1]))
        slow[:, :, c] = right[:, drawn].mean(2).T
    np.testing.assert_allclose(fast.mean(0), slow.mean(0), atol=0.005)
    np.testing.assert_allclose(fast.std(0), slow.std(0), atol=0.005)
    for c in range(2):  # paired: the same images for both models
        correlation = [np.corrcoef(x[:, 0, c], x[:, 1, c])[0, 1] for x in (fast, slow)]
        assert correlation[0] == pytest.approx(correlation[1], abs=0.03)


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Two models of recall 0.6 and 0.7 on 100 images a class: the true difference is 0.1."""
    random = np.random.default_rng(3)
    y = np.repeat(np.arange(4), 100)
    covered = 0
    for trial in range(200):
        a, b = (np.where(random.random(400) < share, y, (y + 1) % 4) for share in (0.6, 0.7))
        found = paired_differences(y, a, b, resamplings=300, seed=trial)["mean_recall"]
        covered += found.low <= 0.1 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_unpaired_runs_are_refused() -> None:
    with pytest.raises(DataError, match="pairs"):
        paired_differences([0, 1], [[0, 1]], [[0, 1], [1, 1]])
    with pytest.raises(DataError, match=r"\(M, N\)"):
        resampled_recall([0, 1], [[0, 1, 1]])


def test_the_worst_share_is_each_models_own() -> None:
    y = np.repeat(np.arange(40), 10)
    first = np.where((y < 2) & (np.arange(400) % 10 < 4), 39, y)  # classes 0 and 1: 60 %
    second = np.where(((y == 7) | (y == 8)) & (np.arange(400) % 10 < 2), 39, y)  # 7 and 8: 80 %
    assert paired_differences(y, first, second)["worst_mean"].mean == pytest.approx(0.2)
    assert paired_differences(y, first, second, worst_share=0.1)["worst_mean"].mean == pytest.approx(0.1)


def test_groups_of_classes_are_figures_too() -> None:
    y = np.repeat(np.arange(4), 10)
    first = np.where((y == 1) & (np.arange(40) % 10 < 4), 3, y)  # class 1: 60 %
    groups = {"few": np.array([False, True, True, False]), "none": np.zeros(4, bool)}
    found = paired_differences(y, first, y, groups=groups)
    assert found["few"].mean == pytest.approx(0.2) and found["few"].low > 0
    assert "none" not in found


def test_differences_of_classes_add_up_to_that_of_their_mean() -> None:
    random = np.random.default_rng(5)
    y = np.repeat(np.arange(6), 40)
    first, second = (np.where(random.random(240) < share, y, (y + 1) % 6) for share in (0.5, 0.7))
    classes = class_differences(y, first, second)
    assert np.mean([d.mean for d in classes]) == pytest.approx(paired_differences(y, first, second)["mean_recall"].mean)
    assert all(d.low <= d.mean <= d.high for d in classes)
    assert [d.mean for d in class_differences(y, first, first)] == [0.0] * 6
    wide, narrow = (class_differences(y, first, second, confidence=c)[0] for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_what_was_resampled_once_serves_figures_and_classes() -> None:
    random = np.random.default_rng(6)
    y = random.permutation(np.repeat(np.arange(6), 40))  # in no order
    first, second = (np.where(random.random(240) < share, y, (y + 1) % 6) for share in (0.5, 0.7))
    drawn = resampled_recall(y, np.stack([first, second]))
    assert paired_differences(y, first, second, drawn=drawn) == paired_differences(y, first, second)
    assert class_differences(y, first, second, drawn=drawn) == class_differences(y, first, second)


def test_the_test_of_a_class_is_the_exact_binomial_one() -> None:
    random = np.random.default_rng(2)
    y = np.repeat(np.arange(40), np.arange(1, 41))
    a, b = (np.where(random.random(len(y)) < share, y, (y + 1) % 40) for share in (0.4, 0.7))
    for c, found in enumerate(sign_test(y, a, b)):
        one, two = a[y == c] == c, b[y == c] == c
        gained, lost = int((two & ~one).sum()), int((one & ~two).sum())
        expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert found == pytest.approx(expected, rel=1e-12)


def test_clear_is_what_neither_the_interval_nor_the_test_takes_for_chance() -> None:
    y = np.repeat(np.arange(4), [5, 6, 40, 40])
    right = np.zeros(len(y), dtype=bool)
    right[5:11] = True  # five and six images gained, of as many; then three and twelve of 40
    right[:5] = True
    right[11:14] = True
    right[51:63] = True
    none, some = np.full(len(y), -1), np.where(right, y, -1)
    differences = class_differences(y, none, some)
    assert [one.low > 0 for one in differences] == [True, True, False, True]
    assert clearly_changed(y, none, some, differences).tolist() == [False, True, False, True]
    wide = [Difference(one.mean, -1.0, 1.0) for one in differences]
    assert not clearly_changed(y, none, some, wide).any()


def test_of_classes_that_did_not_change_few_look_as_if() -> None:
    """At most one in 20, either way, however few images they have; of the interval alone it is more than that."""
    random = np.random.default_rng(3)
    y = np.repeat(np.arange(2000), 8)
    a, b = (np.where(random.random(len(y)) < 0.5, y, -1) for _ in range(2))
    differences = class_differences(y, a, b)
    alone = np.mean([one.low > 0 or one.high < 0 for one in differences])
    assert clearly_changed(y, a, b, differences).mean() <= 0.05 < alone
