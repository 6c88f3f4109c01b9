"""The gate on models with known recalls: each rule can refuse, and nothing else does."""

from dataclasses import replace

import numpy as np
import pytest

from btm_core.config import PromotionRules
from btm_core.errors import ConfigError
from btm_core.evidence import Evidence
from btm_core.promotion import Verdict, judge

IMAGES = 100
RECALL = np.array([0.9] * 15 + [0.3] * 5)


def model(recall: np.ndarray, shift: int = 0) -> Evidence:
    """A model that is right on the first `recall` share of each class's images, counted from `shift` on."""
    targets = np.repeat(np.arange(len(recall)), IMAGES)
    number = (np.tile(np.arange(IMAGES), len(recall)) - shift) % IMAGES
    right = number < np.round(recall * IMAGES)[targets]
    counts = np.linspace(500, 5, len(recall)).astype(int)
    names = tuple(f"class-{c}" for c in range(len(recall)))
    return Evidence(
        "test", "h" * 64, names, counts, counts, targets, np.where(right, targets, (targets + 1) % len(recall))
    )


def changed(**classes: float) -> np.ndarray:
    recall = RECALL.copy()
    for name, value in classes.items():
        recall[int(name.removeprefix("c"))] = value
    return recall


BETTER = changed(c15=0.5, c16=0.5, c17=0.5, c18=0.5, c19=0.5)


def failed(verdict: Verdict) -> list[str]:
    assert verdict.promotes == (not [check for check in verdict.checks if not check.passed])
    return [check.rule for check in verdict.checks if not check.passed]


def test_a_model_with_better_worst_classes_is_promoted() -> None:
    verdict = judge(model(BETTER), model(RECALL), PromotionRules(lowest_recall=0.3))
    assert failed(verdict) == []
    rules = [check.rule for check in verdict.checks]
    assert rules == [
        "h_mean_gain",
        "accuracy_loss",
        "worst_loss",
        "class_loss",
        "new_zero_recall_classes",
        "lowest_recall",
    ]
    gain = verdict.checks[0]
    reports = [model(recall).report.h_mean for recall in (BETTER, RECALL)]
    assert gain.value == pytest.approx(reports[0] - reports[1])
    assert gain.low is not None and gain.high is not None and 0 < gain.low < gain.value < gain.high
    assert len(verdict.reasons) == 6


@pytest.mark.parametrize(
    ("rule", "candidate", "rules"),
    [
        ("h_mean_gain", BETTER, {"h_mean_gain": 0.15}),  # it gains 14 points
        ("accuracy_loss", np.where(BETTER > 0.8, 0.8, BETTER), {}),
        ("class_loss", np.where(np.arange(20) == 3, 0.65, BETTER), {}),
        ("worst_loss", np.where(np.arange(20) == 19, 0.25, BETTER), {"class_loss": None}),
        ("lowest_recall", BETTER, {"lowest_recall": 0.51}),
    ],
)
def test_each_rule_can_refuse_alone(rule: str, candidate: np.ndarray, rules: dict[str, float | None]) -> None:
    verdict = judge(model(candidate), model(RECALL), PromotionRules(**rules))  # type: ignore[arg-type]
    assert failed(verdict) == [rule]
    [reason] = verdict.reasons
    assert reason
    if rule in ("accuracy_loss", "class_loss"):
        assert failed(judge(model(candidate), model(RECALL), PromotionRules(**{**rules, rule: 0.5}))) == []  # type: ignore[arg-type]


def test_a_class_that_works_no_more_refuses() -> None:
    before = changed(c19=0.05)
    after = changed(c15=0.6, c16=0.6, c17=0.6, c18=0.6, c19=0.0)
    rules = PromotionRules(h_mean_gain=-1, worst_loss=None)
    assert failed(judge(model(after), model(before), rules)) == ["new_zero_recall_classes"]
    assert failed(judge(model(after), model(before), rules.model_copy(update={"new_zero_recall_classes": 1}))) == []
    assert "'class-19'" in judge(model(after), model(before), rules).reasons[0]


def test_a_gain_that_zero_recall_hides_is_none() -> None:
    """With a class at zero recall on both sides the H-mean hardly moves, whatever the others do."""
    before = changed(c19=0.0)
    after = changed(c15=0.5, c16=0.5, c17=0.5, c18=0.5, c19=0.0)
    assert failed(judge(model(after), model(before), PromotionRules())) == ["h_mean_gain"]


def test_noise_does_not_promote() -> None:
    """Two draws of one model: one of them is better, by chance."""
    random = np.random.default_rng(0)
    promoted = 0
    for _ in range(40):
        first, second = model(RECALL), model(RECALL)
        draws = [random.random(len(first.targets)) < RECALL[first.targets] for _ in range(2)]
        wrong = (first.targets + 1) % 20
        first, second = (
            replace(one, predictions=np.where(right, one.targets, wrong))
            for one, right in zip((first, second), draws, strict=True)
        )
        promoted += judge(second, first, PromotionRules(resamplings=300, class_loss=None)).promotes
    assert promoted <= 4  # 2.5 % expected: one


def test_the_margin_counts_a_loss_of_just_as_much_as_kept() -> None:
    exactly = np.where(np.arange(20) == 3, 0.7, BETTER)
    assert failed(judge(model(exactly), model(RECALL), PromotionRules())) == []


def test_losses_may_be_judged_at_the_worse_end() -> None:
    candidate = np.where(np.arange(20) < 2, 0.85, BETTER)
    loose, strict = PromotionRules(accuracy_loss=0.0), PromotionRules(accuracy_loss=0.0, losses="interval")
    worse = model(np.where(np.arange(20) < 15, 0.9, 0.31), shift=50)  # a hair better, on other images
    rules = {"h_mean_gain": -1, "class_loss": None, "worst_loss": None}
    assert failed(judge(worse, model(RECALL), loose.model_copy(update=rules))) == []
    assert failed(judge(worse, model(RECALL), strict.model_copy(update=rules))) == ["accuracy_loss"]
    assert failed(judge(model(candidate), model(RECALL), strict)) == []


def test_the_first_model_needs_a_floor() -> None:
    with pytest.raises(ConfigError, match="lowest_recall"):
        judge(model(RECALL), None, PromotionRules())
    assert failed(judge(model(RECALL), None, PromotionRules(lowest_recall=0.3))) == []
    assert failed(judge(model(RECALL), None, PromotionRules(lowest_recall=0.31))) == ["lowest_recall"]


def test_models_of_other_images_or_classes_are_not_compared() -> None:
    champion = model(RECALL)
    for other in (
        replace(champion, split_hash="g" * 64),
        replace(champion, class_names=champion.class_names[::-1]),
    ):
        verdict = judge(model(BETTER), other, PromotionRules())
        assert failed(verdict) == ["comparable"]


def test_with_too_few_images_to_tell_a_gain_from_noise_nothing_is_promoted() -> None:
    """Three images a class: resampled, more classes lose them all, and the interval misses the change itself."""
    random = np.random.default_rng(1)
    classes = 2000
    targets = np.repeat(np.arange(classes), 3)
    right = [random.random(len(targets)) < share for share in (0.55, 0.75)]
    counts = np.full(classes, 30)
    names = tuple(map(str, range(classes)))
    before, after = (
        Evidence("test", "h", names, counts, counts, targets, np.where(one, targets, (targets + 1) % classes))
        for one in right
    )
    rules = PromotionRules(class_loss=None, worst_loss=None, new_zero_recall_classes=None, resamplings=200)
    verdict = judge(after, before, rules)
    assert failed(verdict) == ["h_mean_gain"]
    assert "too few test images" in verdict.reasons[0]
