import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from btm_core.calibration import calibration
from btm_core.errors import DataError


def test_a_case_worked_out_by_hand() -> None:
    """Two bins: four images of confidence 0.4, one right; six of 0.9, all right."""
    found = calibration([0.4] * 4 + [0.9] * 6, [True, False, False, False] + [True] * 6, bins=2)
    assert found.images == (4, 6)
    assert found.confidence == pytest.approx((0.4, 0.9)) and found.accuracy == pytest.approx((0.25, 1.0))
    assert found.error == pytest.approx(0.4 * 0.15 + 0.6 * 0.1)


def test_a_model_that_is_right_as_often_as_it_says_has_no_error() -> None:
    assert calibration([0.75] * 4, [True, True, True, False]).error == 0
    assert calibration([1.0, 0.0], [True, False]).error == 0  # both ends are in a bin


def test_bins_without_images_say_nothing() -> None:
    found = calibration([0.95], [True], bins=4)
    assert found.images == (0, 0, 0, 1) and found.accuracy == (None, None, None, 1.0)
    assert found.to_json()["confidence"][0] is None


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    assert calibration([0.5, 0.25, 0.5], [True, True, True], bins=4).images == (1, 2, 0, 0)


def test_it_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    probabilities = (5 * torch.rand(2000, 7, generator=random)).softmax(1)
    confidence, predicted = probabilities.max(1)
    targets = torch.where(torch.rand(2000, generator=random) < 0.5, predicted, (predicted + 1) % 7)
    found = calibration(confidence.numpy(), (predicted == targets).numpy())
    errors = {
        bins: float(multiclass_calibration_error(probabilities, targets, num_classes=7, n_bins=bins, norm="l1"))
        for bins in (10, 15)
    }
    assert found.error == pytest.approx(errors[15], abs=1e-6) and len(found.images) == 15
    assert abs(errors[10] - errors[15]) > 1e-3  # the number of bins tells


@pytest.mark.parametrize("given", [([], []), ([0.5], [True, False])])
def test_confidences_of_other_images_are_refused(given: tuple[list[float], list[bool]]) -> None:
    with pytest.raises(DataError, match=r"confidences and right must both be \(N,\), N > 0, found \(\d,\) and"):
        calibration(*given)


@pytest.mark.parametrize("confidence", [1.5, -0.1, np.nan])
def test_what_is_no_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(DataError, match=r"confidences must be probabilities, found .*\.\."):
        calibration([confidence], [True])
