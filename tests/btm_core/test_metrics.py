import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import multiclass_recall

from btm_core.errors import DataError
from btm_core.metrics import confusions, recall_report


@st.composite
def splits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets with every class present, predictions, training counts."""
    classes = draw(st.integers(1, 12))
    extra = draw(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, classes - 1)))
    targets = np.concatenate([np.arange(classes), extra])
    predictions = draw(hnp.arrays(np.int64, len(targets), elements=st.integers(0, classes - 1)))
    counts = draw(hnp.arrays(np.int64, classes, elements=st.integers(1, 500)))
    return targets, predictions, counts


@given(splits())
def test_harmonic_is_below_geometric_is_below_arithmetic(split: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, predictions, counts = split
    report = recall_report(targets, predictions, counts)
    floored = np.where(report.recall == 0, 1e-3, report.recall)
    assert report.h_mean <= report.g_mean + 1e-12
    assert report.g_mean <= floored.mean() + 1e-12
    assert floored.min() - 1e-12 <= report.h_mean
    assert report.lowest_recall <= report.mean_recall


@given(splits())
def test_independent_libraries_agree(split: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, predictions, counts = split
    report = recall_report(targets, predictions, counts)
    recall = sklearn_metrics.recall_score(targets, predictions, labels=np.arange(len(counts)), average=None)
    np.testing.assert_allclose(report.recall, recall)
    if len(counts) > 1:
        other = multiclass_recall(
            torch.from_numpy(predictions), torch.from_numpy(targets), num_classes=len(counts), average="none"
        )
        np.testing.assert_allclose(report.recall, other.numpy(), atol=1e-6)
    floored = np.where(recall == 0, 1e-3, recall)
    assert report.h_mean == pytest.approx(stats.hmean(floored))
    assert report.g_mean == pytest.approx(stats.gmean(floored))
    assert report.accuracy == pytest.approx(sklearn_metrics.accuracy_score(targets, predictions))
    assert report.mean_recall == pytest.approx(recall.mean())
    assert report.zero_recall_classes == (recall == 0).sum()


def test_the_paper_example() -> None:
    # section 3.1: per-class accuracy 0.1 and 0.9 has arithmetic mean 0.5, geometric 0.3, harmonic 0.18
    targets = np.repeat([0, 1], 10)
    predictions = np.r_[[0], [1] * 9, [1] * 9, [0]]
    report = recall_report(targets, predictions, [200, 5])
    assert report.h_mean == pytest.approx(0.18)
    assert report.g_mean == pytest.approx(0.3)
    assert report.accuracy == pytest.approx(0.5)
    assert report.lowest_recall == pytest.approx(0.1)
    assert (report.many, report.medium, report.few) == (pytest.approx(0.1), None, pytest.approx(0.9))


def test_group_borders() -> None:
    # many > 100, 20 <= medium <= 100, few < 20; each class at a border has a recall of its own
    shares = {101: 1.0, 100: 0.2, 20: 0.6, 19: 0.9}
    targets = np.repeat(np.arange(4), 10)
    predictions = np.concatenate(
        [np.where(np.arange(10) < 10 * r, c, (c + 1) % 4) for c, r in enumerate(shares.values())]
    )
    report = recall_report(targets, predictions, list(shares))
    assert (report.many, report.medium, report.few) == (1.0, pytest.approx(0.4), pytest.approx(0.9))


def test_the_floor_is_for_means_alone() -> None:
    report = recall_report([0, 1], [0, 0], [5, 5])
    assert report.lowest_recall == 0
    assert report.few == 0.5
    assert report.h_mean == pytest.approx(2 / (1 + 1000))
    assert report.g_mean == pytest.approx(np.sqrt(1e-3))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(DataError, match="N > 0"):
        recall_report([], [], [])
    with pytest.raises(DataError, match="integers"):
        recall_report([0.5], [0], [5])
    with pytest.raises(DataError, match="class 1"):
        recall_report([0, 0], [0, 0], [5, 5])
    with pytest.raises(DataError, match=r"found \(2,\) and \(3,\)"):
        recall_report([0, 1], [0, 1, 1], [5, 5])
    with pytest.raises(DataError, match=r"0\.\.1"):
        recall_report([0, 2], [0, 1], [5, 5])


def test_confusions_are_those_of_the_confusion_matrix() -> None:
    random = np.random.default_rng(0)
    targets, predictions = random.integers(0, 6, 300), random.integers(0, 6, 300)
    matrix = sklearn_metrics.confusion_matrix(targets, predictions)
    for c in range(6):
        found = confusions(targets, predictions, c, top=5)
        assert {other: n for other, n in found} == {o: matrix[c, o] for o in range(6) if o != c and matrix[c, o]}
        assert [n for _, n in found] == sorted((n for _, n in found), reverse=True)
