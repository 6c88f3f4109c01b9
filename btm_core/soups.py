"""Which weights the ingredients of a soup get (Table 6).

S ingredients, N images of the criterion's split, C classes.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btm_core.errors import DataError

__all__ = ["adaptive_weights", "criterion", "greedy_soup"]


def criterion(targets: ArrayLike, predictions: ArrayLike, mean: str) -> float:
    """Return the harmonic ("h_mean") or geometric ("g_mean") mean of smoothed recalls, in (0, 1).

    The recall of class c is taken as (k_c + 1/2) / (n_c + 1), k_c of its n_c images right: on few images, 0 of 5
    says less than 0 of 100, and no floor is needed. Classes without an image do not count.

    Arguments:
    - targets, predictions: (N,) classes.
    """
    y, p = np.asarray(targets), np.asarray(predictions)
    if not len(y):
        raise DataError("a soup cannot be chosen on a split without images")
    total = np.bincount(y)
    present = total > 0
    right = np.bincount(y[y == p], minlength=len(total))
    recall = (right[present] + 0.5) / (total[present] + 1)
    return float(len(recall) / (1 / recall).sum() if mean == "h_mean" else np.exp(np.log(recall).mean()))


def adaptive_weights(scores: ArrayLike) -> NDArray[np.float64]:
    """Return weights (S,) in proportion to the ingredients' scores (S,); they sum to 1."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or (values <= 0).any():
        raise DataError(f"scores must be (S,) and above 0, found {values.tolist()}")
    return np.asarray(values / values.sum())


def greedy_soup(scores: Sequence[float], evaluate: Callable[[Sequence[int]], float]) -> list[int]:
    """Return the members of a greedy soup (Wortsman et al., ICML 2022, recipe 1), in the order they were taken.

    Ingredients are tried from the best to the worst, ties by number, and kept if the soup with them is not worse. So
    the soup is never worse, by the criterion, than its best ingredient.

    Arguments:
    - scores: (S,) criterion of each ingredient alone.
    - evaluate: criterion of the average of some ingredients, given by number.
    """
    first, *others = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    members, best = [first], scores[first]
    for number in others:
        score = evaluate([*members, number])
        if score >= best:
            members, best = [*members, number], score
    return members
