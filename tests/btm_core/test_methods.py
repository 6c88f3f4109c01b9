"""Stage-1 methods: their losses against plain NumPy in float64, and what each does to a network."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.special import log_softmax
from torch.nn import functional as F

from btm_core.config import InputConfig, PretrainConfig
from btm_core.config.methods import Stage1Method
from btm_core.data.dataset import LabelledImages
from btm_core.data.images import PackedPixels
from btm_core.data.views import VIEWS, show
from btm_core.losses import LabelAwareSmoothing, class_weights
from btm_core.methods import stage1_objective, stage1_trainer
from btm_core.methods.contrast import Queue, parametric_contrast
from btm_core.methods.otmix import OTmix, paste, transport_plan
from btm_core.methods.paco import PaCo
from btm_core.methods.pascl import supervised_contrast
from btm_core.models import build_model
from btm_core.sampling import weighted_order

COUNTS = torch.tensor([60, 40, 15, 5])
VIEW = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="crop-flip", crop_padding=1)
METHODS: list[dict[str, Any]] = [
    {"name": "cross_entropy"},
    {"name": "balanced_softmax"},
    {"name": "paco", "queue": 48, "dim": 16},
    {"name": "gpaco", "queue": 48, "dim": 16, "smoothing": 0.1},
    {"name": "otmix", "plain_epochs": 0, "reweight_from": 2},
    {"name": "pascl", "dim": 16},
]


@pytest.fixture
def digits() -> LabelledImages:
    """120 real digits of four classes, 60, 40, 15 and 5 images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = np.concatenate([np.flatnonzero(bunch.target == c)[:n] for c, n in enumerate(COUNTS.tolist())])
    pixels = torch.from_numpy((bunch.images[chosen] * 255 / 16).astype(np.uint8)[:, None])
    return LabelledImages(PackedPixels(pixels), torch.from_numpy(bunch.target[chosen].astype(np.int64)), VIEW)


def config_of(method: dict[str, Any], epochs: int = 4, **more: Any) -> PretrainConfig:
    return PretrainConfig(epochs=epochs, batch_size=24, lr=0.05, method=method, **more)  # type: ignore[arg-type]


def test_every_method_of_the_configuration_has_a_module_and_is_tested_here() -> None:
    schema = TypeAdapter(Stage1Method).json_schema()
    assert set(schema["discriminator"]["mapping"]) == {method["name"] for method in METHODS}
    folder = Path(__file__).parents[2] / "btm_core" / "methods"
    assert {method["name"] for method in METHODS} <= {path.stem for path in folder.glob("*.py")}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_a_method_learns_and_resumes_bit_for_bit(digits: LabelledImages, method: dict[str, Any]) -> None:
    whole = build_model("small_cnn", 4, 1)
    trainer = stage1_trainer(whole, digits, COUNTS, config_of(method), seed=1)
    states = []
    for _ in trainer:
        states.append(copy.deepcopy(trainer.state_dict()))
    right = (whole.eval()(next(digits.test_batches(120, torch.device("cpu")))[0]).argmax(1) == digits.labels).float()
    assert right.mean() > 0.55  # the largest class alone is 0.5
    torch.manual_seed(3)  # nothing may depend on the global generator
    again = build_model("small_cnn", 4, 1, seed=9)
    resumed = stage1_trainer(again, digits, COUNTS, config_of(method), seed=1)
    resumed.load_state_dict(states[1])
    assert [record.epoch for record in resumed] == [3, 4]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("method", [m for m in METHODS if m["name"] != "paco"], ids=lambda method: method["name"])
def test_a_method_trains_only_the_part_it_is_told_to(digits: LabelledImages, method: dict[str, Any]) -> None:
    model = build_model("small_cnn", 4, 1)
    before = copy.deepcopy(model.state_dict())
    config = config_of(method, epochs=1, train="last_block_and_head")
    list(stage1_trainer(model, digits, COUNTS, config, seed=1))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("backbone.conv3.", "head.")) for name in changed)


def contrast_in_numpy(z: Any, s: Any, y: Any, candidates: Any, prior: Any, alpha: float, smooth: float) -> float:
    """The loss of PaCo and GPaCo, one anchor at a time."""
    anchors, classes = z.shape
    losses = []
    for i in range(anchors):
        others = [j for j in range(s.shape[1]) if j != i]
        log_p = log_softmax(np.concatenate([z[i] + np.log(prior), s[i, others]]))
        label = np.full(classes, smooth / (classes - 1))
        label[y[i]] = 1 - smooth
        positives = [log_p[classes + k] for k, j in enumerate(others) if candidates[j] == y[i]]
        losses.append(-(label @ log_p[:classes] + alpha * sum(positives)) / (1 + alpha * len(positives)))
    return float(np.mean(losses))


@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_parametric_contrast_against_numpy(smooth: float) -> None:
    random = np.random.default_rng(0)
    z, s = random.normal(size=(6, 4)), random.normal(size=(6, 15))
    y = random.integers(0, 4, 6)
    candidates = np.concatenate([y, random.integers(0, 4, 9)])
    prior = COUNTS.numpy() / 120
    expected = contrast_in_numpy(z, s, y, candidates, prior, 0.05, smooth)
    labels = (torch.from_numpy(y), torch.from_numpy(candidates), torch.from_numpy(prior).log())

    def loss(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return parametric_contrast(z, s, *labels, 0.05, smooth)

    inputs = (torch.from_numpy(z).requires_grad_(), torch.from_numpy(s).requires_grad_())
    assert loss(*inputs).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, inputs)


def test_without_positives_parametric_contrast_of_nothing_is_balanced_softmax() -> None:
    from btm_core.losses import BalancedSoftmax

    z, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    none = torch.zeros(5, 5, dtype=torch.float64) - torch.inf
    loss = parametric_contrast(z, none, y, torch.full((5,), -1), (COUNTS.double() / 120).log(), 0.05)
    torch.testing.assert_close(loss, BalancedSoftmax(COUNTS)(z, y), rtol=1e-12, atol=0)


def test_supervised_contrast_against_numpy() -> None:
    random = np.random.default_rng(1)
    e = random.normal(size=(7, 5))
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    y = np.array([0, 0, 1, 1, 1, 2, 0])  # class 2 is alone: no anchor
    losses = []
    for i in range(6 + 1):
        others = [j for j in range(7) if j != i]
        log_p = log_softmax(e[others] @ e[i] / 0.07)
        positives = [log_p[k] for k, j in enumerate(others) if y[j] == y[i]]
        if positives:
            losses.append(-np.mean(positives))
    x = torch.from_numpy(e).requires_grad_()
    classes = torch.from_numpy(y)
    assert supervised_contrast(x, classes, 0.07).item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, classes, 0.3), x)
    assert supervised_contrast(x, torch.arange(7), 0.07).item() == 0


def test_reweighted_smoothing_against_numpy() -> None:
    counts = COUNTS.numpy()
    logits = torch.randn(16, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(4, (16,))
    weights = class_weights(counts, "effective")
    assert weights is not None
    expected_weights: NDArray[np.float64] = (1 - 0.999) / (1 - 0.999**counts)
    np.testing.assert_allclose(weights, expected_weights / expected_weights.mean(), rtol=1e-12)
    assert class_weights(counts, "none") is None
    inverse = class_weights(counts, "inverse")
    assert inverse is not None
    np.testing.assert_allclose(inverse * counts, (inverse * counts)[0].expand(4), rtol=1e-12)
    loss = LabelAwareSmoothing(counts, 0.2, 0.2, weights=weights)
    reference = F.cross_entropy(logits, y, weights, label_smoothing=0.0)
    plain = LabelAwareSmoothing(counts, 0, 0, weights=weights)
    torch.testing.assert_close(plain(logits, y), reference, rtol=1e-12, atol=0)
    log_p = log_softmax(logits.detach().numpy(), axis=1)
    per_image = -(0.8 * log_p[np.arange(16), y] + 0.2 * log_p.mean(1))
    w = weights.numpy()[y]
    assert loss(logits, y).item() == pytest.approx((w * per_image).sum() / w.sum(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), logits)


def test_the_transport_plan_has_the_marginals_and_prefers_what_is_cheap() -> None:
    cost = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    plan = transport_plan(cost, 0.05, 2000)
    torch.testing.assert_close(plan.sum(0), torch.full((9,), 1 / 9, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-4, atol=0)
    square = torch.ones(5, 5) - torch.eye(5)[[3, 1, 4, 0, 2]]
    assert transport_plan(square, 0.01).argmax(1).tolist() == [3, 1, 4, 0, 2]


def test_pasting_says_how_much_of_the_background_is_kept() -> None:
    back, front = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    for seed in range(20):
        mixed, kept = paste(front, back, 4.0, torch.Generator().manual_seed(seed))
        assert 1 - mixed.mean().item() == pytest.approx(kept, abs=1e-6)
        assert torch.equal(mixed[0], mixed[1])
    assert back.sum() == 0


def test_otmix_matches_a_foreground_to_the_class_it_is_confused_with(digits: LabelledImages) -> None:
    from btm_core.objectives import Batch

    objective = stage1_objective(build_model("small_cnn", 4, 1), COUNTS, config_of({"name": "otmix"}))
    assert isinstance(objective, OTmix)
    objective.confusion[3, 1] = 10  # class 3 is taken for class 1
    objective.confusion[2, 0] = 10
    x = torch.randn(4, 1, 8, 8)
    back = Batch(x, torch.tensor([0, 1, 2, 3]))
    front = Batch(x.flip(0), torch.tensor([3, 2, 3, 2]))
    matched = back.y[objective.eval()._match(back, front)]
    assert {(f, b) for f, b in zip(front.y.tolist(), matched.tolist(), strict=True)} <= {(3, 1), (2, 0), (3, 3), (2, 2)}
    assert 1 in matched[front.y == 3]
    assert 0 in matched[front.y == 2]


def test_the_queue_holds_the_newest_and_wraps_around() -> None:
    queue = Queue(5, 2, 3, "t")
    for start in (0, 3):
        rows = torch.arange(start, start + 3)
        queue.push(torch.stack([rows, rows], 1).float(), rows % 3)
    assert queue.embeddings[:, 0].tolist() == [5, 1, 2, 3, 4]
    assert queue.classes.tolist() == [2, 1, 2, 0, 1]
    empty = Queue(0, 2, 3, "t")
    empty.push(torch.ones(2, 2), torch.tensor([0, 1]))
    assert len(empty.embeddings) == 0


def test_the_momentum_encoder_follows_slowly() -> None:
    objective = stage1_objective(build_model("small_cnn", 4, 1), COUNTS, config_of({"name": "paco", "momentum": 0.9}))
    assert isinstance(objective, PaCo)
    slow = next(objective.slow_backbone.parameters())
    fast = next(objective.model.backbone.parameters())
    start = slow.detach().clone()
    with torch.no_grad():
        fast.add_(1.0)
        objective._follow(objective.slow_backbone, objective.model.backbone)
    torch.testing.assert_close(slow - start, torch.full_like(slow, 0.1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64)])
def test_a_view_is_named_by_its_generator_and_keeps_shape_and_type(view: str, channels: int, size: int) -> None:
    config = InputConfig(size=size, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)  # type: ignore[arg-type]
    config = config.model_copy(update={"augmentation": "crop-flip"})
    pixels = torch.randint(256, (3, channels, size, size), dtype=torch.uint8)
    state = torch.get_rng_state()
    shown = [show(view, pixels, config, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*shown)
    assert not torch.equal(shown[0], show(view, pixels, config, torch.Generator().manual_seed(6)))
    assert shown[0].shape == pixels.shape and shown[0].dtype == torch.uint8
    assert torch.equal(state, torch.get_rng_state())  # torchvision's draws leave no trace


def test_weighted_draws_are_balanced_at_one_and_plain_at_zero() -> None:
    labels = np.repeat(np.arange(3), [900, 90, 10])
    for balance, expected in ((1.0, [1 / 3, 1 / 3, 1 / 3]), (0.0, [0.9, 0.09, 0.01])):
        drawn = labels[weighted_order(labels, 30_000, balance, "t")]
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 30_000, expected, atol=0.012)
