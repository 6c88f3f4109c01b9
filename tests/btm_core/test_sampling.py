import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from btm_core.data import class_counts, long_tail_indices, profile, read_list
from btm_core.errors import DataError
from btm_core.sampling import balanced_subset, class_aware_order, shortfall

labels_arrays = hnp.arrays(np.int64, st.integers(1, 200), elements=st.integers(0, 9))


@given(labels_arrays, st.integers(1, 30), st.integers(0, 99), st.integers(0, 20))
def test_a_subset_holds_min_of_shots_and_count_without_replacement(
    labels: np.ndarray, shots: int, seed: int, index: int
) -> None:
    subset = balanced_subset(labels, shots, seed, index)
    assert subset.dtype == np.int64
    assert (np.diff(subset) > 0).all()  # sorted, and no image twice
    found, counts = Counter(labels[subset].tolist()), Counter(labels.tolist())
    assert found == {c: min(shots, n) for c, n in counts.items()}


def test_subsets_are_the_same_in_another_process_and_order() -> None:
    labels = np.random.default_rng(0).integers(0, 20, 3000)
    here = [balanced_subset(labels, 10, 7, index).tolist() for index in range(5)]
    script = (
        "import numpy as np; from btm_core.sampling import balanced_subset;"
        "labels = np.random.default_rng(0).integers(0, 20, 3000); np.random.seed(99);"
        "print([balanced_subset(labels, 10, 7, i).tolist() for i in (4, 3, 2, 1, 0)][::-1])"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)
    assert len({tuple(subset) for subset in here}) == 5


def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    labels = np.zeros(50, np.int64)
    times = np.bincount(np.concatenate([balanced_subset(labels, 10, 0, i) for i in range(2000)]), minlength=50)
    assert abs(times - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)  # five standard deviations


def test_shots_below_one_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1, found 0"):
        balanced_subset([0, 1], 0, 0, 0)


def test_shortfall() -> None:
    assert shortfall([12, 10, 9, 1], 10).tolist() == [2, 3]


@given(labels_arrays, st.integers(1, 400), st.integers(1, 5))
def test_class_aware_order_visits_classes_equally(labels: np.ndarray, length: int, per_class: int) -> None:
    order = class_aware_order(labels, length, per_class, "seed")
    assert order.shape == (length,)
    visits = labels[order][::per_class]
    classes = len(np.unique(labels))
    for start in range(0, len(visits) - classes + 1, classes):
        assert len(set(visits[start : start + classes])) == classes  # each class once a cycle
    for first in range(0, length, per_class):
        assert len(set(labels[order[first : first + per_class]])) == 1
    for c in np.unique(labels):
        own = order[labels[order] == c]
        whole = own[: len(own) // (labels == c).sum() * (labels == c).sum()]
        assert (
            len(set(np.bincount(whole, minlength=len(labels))[np.flatnonzero(labels == c)])) <= 1
        )  # each image equally often


CUTS = {  # imbalance factor: images; sha256 of the positions of 500 labels a class in order; of the official labels
    100: (
        10_847,
        "b56cfff7465dadc1cd15f6ef246e2b5e2be1cfcb2955f4b6513457ed62e242e1",
        "e0d58a4d2700c46062da852554e5d185bbee74d3c612b052ea2a839bdadf939e",
    ),
    50: (
        12_608,
        "e5ac61a96010229490b143de984ac562bf22e3df21ac199ab81c40c3ae698e3b",
        "561fa940cc7d3551d441643e310c7e439bf84f86b7863a3f7364963522d2984a",
    ),
    10: (
        19_573,
        "3950dc0679f02be33f238f9c385d11dcdfb29c0365762082aa42f43fdf75bb60",
        "b4fbf1bf0a7f33381467493f50b953ce21b03a2b6d45b0d5e8da5d95d9ffd736",
    ),
}


def digest(positions: np.ndarray) -> str:
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("factor", CUTS)
def test_the_cut_is_the_published_one_image_by_image(factor: int) -> None:
    """The digests are of the published procedure, written down once more below, and of nothing else."""
    images, pinned, _ = CUTS[factor]
    labels = np.repeat(np.arange(100), 500)
    kept = long_tail_indices(labels, factor)
    assert len(kept) == images
    assert digest(kept) == pinned
    random = np.random.RandomState(0)  # the published code seeds NumPy's global generator, which is one of these
    chosen = []
    for c, count in enumerate(int(500 * (1 / factor) ** (c / 99)) for c in range(100)):
        own = np.where(labels == c)[0]
        random.shuffle(own)
        chosen.append(own[:count])
    np.testing.assert_array_equal(kept, np.concatenate(chosen))
    assert digest(long_tail_indices(labels, factor, seed=1)) != pinned


@pytest.mark.parametrize("factor", CUTS)
def test_the_published_cifar100_cut(cifar100: Path, factor: int) -> None:
    records = np.fromfile(cifar100 / "cifar-100-binary" / "train.bin", np.uint8).reshape(-1, 3074)
    labels = records[:, 1].astype(np.int64)
    images, _, pinned = CUTS[factor]
    kept = long_tail_indices(labels, factor)
    assert len(kept) == images == len(set(kept.tolist()))
    assert digest(kept) == pinned
    counts = class_counts(labels[kept], 100)
    assert (counts[0], counts[-1]) == (500, int(500 / factor))
    assert (np.diff(counts) <= 0).all()


def test_the_groups_of_cifar100_lt() -> None:
    counts = [int(500 * 0.01 ** (c / 99)) for c in range(100)]
    found = profile(counts)
    assert (found.images, found.largest, found.smallest) == (10_847, 500, 5)
    assert (found.many, found.medium, found.few) == (35, 35, 30)
    edges = profile([101, 100, 20, 19])
    assert (edges.many, edges.medium, edges.few) == (1, 2, 1)


def test_the_published_places_lists(published_lists: Path) -> None:
    file = published_lists / "Places_LT_train.txt"
    paths, labels = read_list(file.read_text(), str(file))
    assert len(paths) == len(labels) == 62_500
    counts = class_counts(labels, 365)
    assert (counts.max(), counts.min()) == (4980, 5)
    found = profile(counts)
    assert (found.many, found.medium, found.few) == (131, 163, 71)
    published = [read_list((published_lists / f"Places_BL_train_10_{i}.txt").read_text(), "")[1] for i in range(3)]
    for index in range(3):
        subset = balanced_subset(labels, 10, 0, index)
        assert len(subset) == 3568 == len(published[index])
        assert (class_counts(labels[subset], 365) == class_counts(published[index], 365)).all()


def test_an_imbalance_factor_below_one_is_refused() -> None:
    with pytest.raises(DataError, match=r"at least 1, found 0\.01"):
        long_tail_indices([0, 1], 0.01)
    with pytest.raises(DataError, match="no labels"):
        long_tail_indices([], 100)
