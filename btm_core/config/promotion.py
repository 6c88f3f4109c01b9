"""The rules of the gate: what a model must be to take the place of the one in use."""

from typing import Literal

from pydantic import Field

from btm_core.config.section import Section

__all__ = ["PromotionRules"]


class PromotionRules(Section):
    """What a candidate must keep to against the champion, on the same images. Figures are shares of 1.

    The gain counts by the lower end of its interval, so that noise does not promote. Losses count as they are measured:
    those of few images have wide intervals, and a rule on their worse end would refuse nearly everything.
    """

    h_mean_gain: float = Field(
        0.001,
        ge=-1,
        le=1,
        description="least gain in H-mean, at the lower end of its interval; with zero-recall classes on both sides "
        "H-mean hardly moves, whatever else does",
    )
    accuracy_loss: float | None = Field(0.01, ge=0, le=1, description="most loss in accuracy; None: any")
    class_loss: float | None = Field(0.2, ge=0, le=1, description="most loss in recall of any single class; None: any")
    worst_loss: float | None = Field(
        0.02, ge=0, le=1, description="most loss in mean recall of the worst classes; None: any"
    )
    worst_share: float = Field(0.05, gt=0, le=1, description="share of the classes that count as the worst")
    lowest_recall: float | None = Field(
        None, ge=0, le=1, description="floor under the lowest recall; the first model of all needs one"
    )
    new_zero_recall_classes: int | None = Field(
        0, ge=0, description="most classes with zero recall that had some before; None: any"
    )
    losses: Literal["measured", "interval"] = Field(
        "measured", description="interval: accuracy_loss and worst_loss count at the worse end of their intervals"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals, two-sided")
    resamplings: int = Field(1000, ge=200, le=100_000, description="bootstrap resamplings of the test images")
