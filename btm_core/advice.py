"""Sensible settings for a data set, each with the reason, and the YAML file that says both.

Nothing here is tuned: the settings are those that the paper or this project's own experiments used on the most similar
data, scaled to how much there is. C classes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from btm_core.data.glimpse import Glimpse
from btm_core.text import printable

__all__ = ["GOALS", "Choice", "Seen", "Start", "advise", "experiment_yaml"]

Goal = Literal["try", "normal", "best"]
GOALS: dict[Goal, str] = {
    "try": "see within minutes that it works",
    "normal": "good figures in reasonable time",
    "best": "as long as the paper trained",
}
STEPS = {"small": {"try": 400, "normal": 3000, "best": 15000}, "large": {"try": 1000, "normal": 10000, "best": 60000}}
EPOCHS = {"try": (3, 40), "normal": (20, 100), "best": (60, 200)}
PAPER_SHOTS = 10
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WIDTH = 100


@dataclass(frozen=True)
class Start:
    """A file to start from: of stage 1 (`checkpoint`), or of a trained backbone (`initial`)."""

    key: Literal["checkpoint", "initial"]
    file: str
    backbone: str
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Seen:
    """What settings are chosen by.

    Fields:
    - class_names, train_counts, test_counts: (C,).
    - gpus: that can be seen here.
    - backbone, size: what the user asked for, if anything.
    - validation: whether there is a validation split.
    """

    class_names: Sequence[str]
    train_counts: NDArray[np.int64]
    test_counts: NDArray[np.int64]
    images: Glimpse
    gpus: int
    goal: Goal = "normal"
    start: Start | None = None
    backbone: str | None = None
    size: int | None = None
    validation: bool = False

    @property
    def total(self) -> int:
        """Training images."""
        return int(self.train_counts.sum())

    @property
    def smallest(self) -> tuple[str, int]:
        """Name and images of the smallest class."""
        c = int(self.train_counts.argmin())
        return self.class_names[c], int(self.train_counts[c])

    def short(self, shots: int) -> int:
        """Classes with fewer than so many images."""
        return int((self.train_counts < shots).sum())


@dataclass(frozen=True)
class Choice:
    """A key of the configuration, its value, and why."""

    key: str
    value: Any
    why: str = ""


def advise(seen: Seen) -> list[Choice]:
    """Return the settings for what was seen, in the order of the configuration."""
    network = _network(seen)
    chosen = {choice.key: choice.value for choice in network}
    tiny, large = chosen["model.backbone"] == "small_cnn", chosen["data.input.augmentation"] == "random-resized-crop"
    return [
        *_validation(seen),
        *network,
        *_pretrain(seen, tiny, large),
        *_sampling(seen),
        *_finetune(seen, _shots(seen), tiny, large),
        *_post_train(seen, tiny, large),
    ]


def _validation(seen: Seen) -> list[Choice]:
    name, least = seen.smallest
    if seen.validation:
        return []
    if least >= 20:
        count = min(10, least // 10)
        why = (
            f"{count} training images a class are held back, to choose settings on without looking at the test split; "
            f"your smallest class ({name}) has {least}."
        )
        return [Choice("data.validation_per_class", count, why)]
    why = (
        f"No validation split is carved out of training: your smallest class ({name}) has {_images(least)}, and needs "
        "all of them. Set validation_per_class if settings are to be chosen on one."
    )
    return [Choice("data.validation_per_class", None, why)]


def _network(seen: Seen) -> list[Choice]:
    images, start = seen.images, seen.start
    low, middle, high = images.shorter
    saw = f"The {images.images:,} of your images that were looked at have a shorter side of {low} pixels"
    if low < high:
        saw = saw.replace(f"{low} pixels", f"{low} to {high} pixels, {middle} in the middle")
    channels = start.channels if start else 1 if images.grey else 3
    if start:
        backbone, size = start.backbone, start.size
        why = f"That of {start.file}, which was trained at {size} pixels."
    else:
        backbone, size, why = _backbone(seen, middle)
    backbone, size = seen.backbone or backbone, seen.size or size
    large = size > 64
    if large:
        augmentation, about = "random-resized-crop", "Random crops of varying scale, as usual for photographs."
    elif images.grey:
        augmentation, about = "crop", "Crops but no mirror images: grey images may be signs that read one way only."
    else:
        augmentation, about = "crop-flip", "Crops and mirror images; use crop if left and right differ in meaning."
    measured = {"mean": images.mean, "std": images.std}
    values = {"mean": start.mean, "std": start.std} if start else IMAGENET if large and channels == 3 else measured
    origin = (
        f"Those of {start.file}." if start else "Those of ImageNet, as usual." if values is IMAGENET else "Measured."
    )
    colour = "None of them has colours." if images.grey else "They have colours."
    chosen = [
        Choice("data.input.size", size, f"{saw}."),
        Choice("data.input.channels", channels, colour if not start else f"As {start.file} has it. {colour}"),
        Choice("data.input.mean", list(_per_channel(values["mean"], channels)), origin),
        Choice("data.input.std", list(_per_channel(values["std"], channels))),
        Choice("data.input.augmentation", augmentation, about),
    ]
    if not large:
        chosen.append(Choice("data.input.crop_padding", max(1, size // 8)))
    chosen.append(Choice("model.backbone", backbone, "You asked for it." if seen.backbone else why))
    if seen.gpus and large:
        chosen.append(Choice("model.precision", "bfloat16", "There is a GPU here: faster, and as good."))
    return chosen


def _per_channel(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) == channels else [values[0]] * channels


def _backbone(seen: Seen, side: int) -> tuple[str, int, str]:
    """Return architecture, input size and the reason, by the shorter side of the images."""
    if side <= 20:
        return "small_cnn", max(8, side - side % 2), "Three convolutions are enough for so few pixels."
    if side <= 48:
        return "resnet32", 32, "The network of the paper for images of 32 pixels."
    if side <= 100:
        return "resnet18", 64, "A small network for small images."
    if not seen.gpus:
        why = (
            "No GPU was seen, so small network and size; with one, resnet50 and 224. A trained backbone "
            "(pretrain.initial) helps more than anything else."
        )
        return "resnet18", 128, why
    if seen.total < 5000:
        why = f"{seen.total:,} training images are few for a larger network trained from the beginning."
        return "resnet18", 224, why
    return "resnet50", 224, "The network of the paper for photographs."


def _pretrain(seen: Seen, tiny: bool, large: bool) -> list[Choice]:
    if seen.start and seen.start.key == "checkpoint":
        return [Choice("pretrain.checkpoint", seen.start.file, "Stage 1 is taken from it, and not trained.")]
    total = seen.total
    batch = _power_of_two(total / 6, 16, 256 if large and seen.gpus else 64 if large else 128)
    steps_an_epoch = -(-total // batch)  # the last batch is smaller
    least, most = EPOCHS[seen.goal]
    wanted = STEPS["large" if large else "small"][seen.goal] / (3 if seen.start else 1)
    epochs = int(min(max(round(wanted / steps_an_epoch), least), most))
    chosen = []
    if seen.start:
        chosen.append(
            Choice("pretrain.initial", seen.start.file, "Training starts from its backbone, with a new head.")
        )
    steps = epochs * steps_an_epoch
    why = f"{total:,} images in batches of {batch} are {steps_an_epoch:,} steps an epoch, {steps:,} in all"
    lr = 0.01 if seen.start else round(0.1 * min(1.0, batch / 64), 4)
    slow = "Low, because the network is trained already." if seen.start else "The usual one of SGD with momentum."
    chosen += [
        Choice("pretrain.epochs", epochs, f"{why} ({seen.goal}: {GOALS[seen.goal]})."),
        Choice("pretrain.batch_size", batch, _batch_reason(batch, total)),
        Choice("pretrain.lr", lr, slow if batch >= 64 or seen.start else f"{slow[:-1]}, less for so small a batch."),
        Choice("pretrain.weight_decay", 5e-4),
        Choice("pretrain.schedule", "cosine"),
        Choice("pretrain.mixup_alpha", 0.2, "Mixup: stage 1 overfits less, and the tail gains."),
    ]
    return chosen


def _shots(seen: Seen) -> int:
    return PAPER_SHOTS if seen.short(PAPER_SHOTS) <= len(seen.train_counts) // 2 else PAPER_SHOTS // 2


def _sampling(seen: Seen) -> list[Choice]:
    shots, (name, least) = _shots(seen), seen.smallest
    short = seen.short(shots)
    subsets = {"try": 5, "normal": 10, "best": 10}[seen.goal]
    drawn = int(np.minimum(seen.train_counts, shots).sum())
    if short:
        why = (
            f"Images a class in a balanced subset. Your smallest class ({name}) has {_images(least)}: it gives all of "
            f"them to every subset; {short} of {len(seen.train_counts)} classes have fewer than {shots}."
        )
    else:
        why = f"Images a class in a balanced subset; all your classes have as many, the smallest ({name}) {least}."
    if shots < PAPER_SHOTS:
        why += f" The paper takes {PAPER_SHOTS}, but more than half of your classes have fewer."
    many = (
        f"Subsets, networks fine-tuned, and averaged: as the paper has it. Each has {drawn:,} of {seen.total:,} images."
    )
    if subsets < 10:
        many = f"Half of the paper's ten, to be done sooner. Each has {drawn:,} of {seen.total:,} training images."
    return [Choice("sampling.num_subsets", subsets, many), Choice("sampling.shots", shots, why)]


def _finetune(seen: Seen, shots: int, tiny: bool, large: bool) -> list[Choice]:
    drawn = int(np.minimum(seen.train_counts, shots).sum())
    batch = _power_of_two(drawn / 2, 8, 256 if seen.gpus or not large else 64)
    epochs = 60 if tiny else 15 if seen.goal == "try" else 30  # the digits needed as many (docs/log.md)
    lr = 0.1 if tiny else 1e-3 if large else 5e-3
    rate = "What worked on digits: a small network has far to go." if tiny else "The paper's, for such images."
    return [
        Choice("finetune.epochs", epochs, f"Of a subset, which has {drawn:,} images: quickly done."),
        Choice("finetune.batch_size", batch, _batch_reason(batch, drawn)),
        Choice(
            "finetune.lr", lr, f"{rate} If the ingredients are no better than stage 1, this is what to change first."
        ),
    ]


def _post_train(seen: Seen, tiny: bool, large: bool) -> list[Choice]:
    batch = _power_of_two(seen.total / 6, 16, 256 if large and seen.gpus else 128)
    return [
        Choice("post_train.epochs", 10, "Only the head is trained again, with balanced sampling."),
        Choice("post_train.batch_size", batch),
        Choice("post_train.lr", 0.05 if tiny else 0.1),
        Choice("post_train.head_lr_factor", 1.0 if tiny else 0.05 if large else 0.2),
    ]


def _power_of_two(value: float, least: int, most: int) -> int:
    """Return the largest power of two that is at most `value`, within bounds that are powers of two."""
    return int(min(max(2 ** int(np.log2(max(value, 1))), least), most))


def _batch_reason(batch: int, images: int) -> str:
    if images < 2 * batch:
        return f"Few steps an epoch of {images:,} images, but smaller batches are normalised by too few."
    return f"{-(-images // batch):,} steps an epoch of {images:,} images: many small steps train a network, few do not."


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def experiment_yaml(head: Sequence[str], name: str, data: Mapping[str, Any], choices: Sequence[Choice]) -> str:
    """Return an experiment as YAML with a comment above each choice that has a reason.

    Arguments:
    - head: paragraphs of comment for the top.
    - data: fields of `data` besides those that were chosen.
    """
    lines = [line for paragraph in head for line in _comment(paragraph, 0)]
    lines += ["", f"name: {_scalar(name)}", "seed: 0"]
    fields = [Choice(f"data.{key}", value) for key, value in data.items()]
    open_sections: list[str] = []
    for choice in [*fields, *choices]:
        *sections, key = choice.key.split(".")
        shared = 0
        while shared < min(len(sections), len(open_sections)) and sections[shared] == open_sections[shared]:
            shared += 1
        for depth in range(shared, len(sections)):
            lines += ([""] if depth == 0 else []) + [f"{'  ' * depth}{sections[depth]}:"]
        open_sections, indent = sections, len(sections)
        lines += _comment(choice.why, indent) if choice.why else []
        if choice.value is not None:
            lines.append(f"{'  ' * indent}{key}: {_scalar(choice.value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: int) -> list[str]:
    start = "  " * indent + "# "
    return textwrap.wrap(printable(text), WIDTH, initial_indent=start, subsequent_indent=start)


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
