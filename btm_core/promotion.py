"""The gate: whether a model may take the place of the one in use, judged by its worst classes.

C classes; differences are candidate minus champion.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from btm_core.config import PromotionRules
from btm_core.errors import ConfigError
from btm_core.evidence import Evidence, obstacles
from btm_core.statistics import Difference, class_differences, paired_differences

__all__ = ["Check", "Verdict", "judge"]


@dataclass(frozen=True)
class Check:
    """One rule, and how the candidate stands to it.

    - limit: what the rule allows; value: what was measured; low, high: its interval, where there is one.
    - text: the same in words.
    """

    rule: str
    passed: bool
    text: str
    limit: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks of a candidate; it is promoted if it passed them all."""

    checks: tuple[Check, ...]

    @property
    def promotes(self) -> bool:
        """Whether no check failed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What stands in the way, a sentence a failed check; if nothing does, what speaks for it."""
        return [check.text for check in self.checks if check.passed == self.promotes]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the checks, JSON-ready."""
        return [asdict(check) for check in self.checks]


def judge(candidate: Evidence, champion: Evidence | None, rules: PromotionRules) -> Verdict:
    """Judge a candidate against the champion by `rules`; without a champion, by the floor alone.

    Raises ConfigError if there is neither a champion nor a floor: then nothing could refuse.
    """
    if champion is None:
        if rules.lowest_recall is None:
            raise ConfigError(
                "this is the first model, so there is none to compare it with, and no rule that could refuse it: give "
                "the recall that its lowest class must have, say --set promotion.lowest_recall=0.1"
            )
        return Verdict(tuple(_floor(candidate, rules)))
    found = obstacles(champion, candidate)
    if found:
        return Verdict(tuple(Check("comparable", False, f"champion and candidate: {text}") for text in found))
    return Verdict(
        (
            *_summaries(candidate, champion, rules),
            *_classes(candidate, champion, rules),
            *_floor(candidate, rules),
        )
    )


def _floor(candidate: Evidence, rules: PromotionRules) -> Iterator[Check]:
    if rules.lowest_recall is None:
        return
    report = candidate.report
    worst = int(np.argmin(report.recall))
    name, value, limit = candidate.class_names[worst], report.lowest_recall, rules.lowest_recall
    text = f"the lowest recall is {_percent(value)}, of {name!r}; the floor is {_percent(limit)}"
    yield Check("lowest_recall", value >= limit, text, limit, value)


def _summaries(candidate: Evidence, champion: Evidence, rules: PromotionRules) -> Iterator[Check]:
    differences = paired_differences(
        candidate.targets,
        champion.predictions,
        candidate.predictions,
        resamplings=rules.resamplings,
        confidence=rules.confidence,
        worst_share=rules.worst_share,
    )
    gain = differences["h_mean"]
    text = f"H-mean changes by {_points(gain.mean)} ({_interval(gain, rules)}); the lower end must reach "
    text += _points(rules.h_mean_gain)
    # Of few images a class, more recalls are zero among resampled ones than among all: the interval is biased.
    reliable = gain.low <= gain.mean <= gain.high
    if not reliable:
        text += ", and the interval must hold the change: there are too few test images a class to tell gain from noise"
    yield Check(
        "h_mean_gain",
        gain.low >= rules.h_mean_gain and reliable,
        text,
        rules.h_mean_gain,
        gain.mean,
        gain.low,
        gain.high,
    )
    share = f"mean recall of the worst {100 * rules.worst_share:g} % of classes"
    for rule, figure, name in (("accuracy_loss", "accuracy", "accuracy"), ("worst_loss", "worst_mean", share)):
        limit, change = getattr(rules, rule), differences[figure]
        if limit is None:
            continue
        counted = change.mean if rules.losses == "measured" else change.low
        text = (
            f"{name} changes by {_points(change.mean)} ({_interval(change, rules)}); it may lose {_points(limit, '')}"
        )
        if rules.losses == "interval":
            text += ", at the lower end"
        yield Check(rule, _at_most(-counted, limit), text, limit, change.mean, change.low, change.high)


def _classes(candidate: Evidence, champion: Evidence, rules: PromotionRules) -> Iterator[Check]:
    before, after = champion.report.recall, candidate.report.recall
    if rules.class_loss is not None:
        c = int(np.argmin(after - before))
        change = class_differences(
            candidate.targets,
            champion.predictions,
            candidate.predictions,
            resamplings=rules.resamplings,
            confidence=rules.confidence,
        )[c]
        over = int((before - after > rules.class_loss + 1e-9).sum())
        lost = f"class {candidate.class_names[c]!r} goes from {_percent(before[c])} to {_percent(after[c])}"
        text = f"{lost} ({_interval(change, rules)}); a class may lose {_points(rules.class_loss, '')}"
        text += f", {over} classes lose more" if over > 1 else ""
        yield Check("class_loss", over == 0, text, rules.class_loss, change.mean, change.low, change.high)
    if rules.new_zero_recall_classes is not None:
        new = np.flatnonzero((after == 0) & (before > 0))
        names = ", ".join(repr(candidate.class_names[c]) for c in new[:5]) + (", ..." if len(new) > 5 else "")
        text = f"{len(new)} classes work no more{f' ({names})' if names else ''}; {rules.new_zero_recall_classes} may"
        passed = len(new) <= rules.new_zero_recall_classes
        yield Check("new_zero_recall_classes", passed, text, rules.new_zero_recall_classes, len(new))


def _at_most(loss: float, limit: float) -> bool:
    """Whether a loss keeps to its limit; 0.1 of ten images is 0.1, whatever binary fractions make of it."""
    return loss <= limit + 1e-9


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float, sign: str = "+") -> str:
    return f"{100 * value:{sign}.1f} points"


def _interval(change: Difference, rules: PromotionRules) -> str:
    return f"{100 * rules.confidence:g} % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
