"""What of an experiment is worth a second look before it is run: the key, what was found, and what to do.

None of it is an error: whatever cannot work is refused by the configuration and by the preflight.

N_D subsets of N_C shots, n_c training images of class c, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btm_core.config import ExperimentConfig, TrainConfig
from btm_core.planning.workload import subset_images

__all__ = ["Caution", "cautions", "repeats"]

STUDIED_SUBSETS = 20
"""The most subsets of Table 7; H-mean fell from 29.7 at 10 to 15.2 at 20 there (Places-LT, MiSLAS)."""
PAPER_SUBSETS = 10
"""N_D of every experiment of the paper: its tail images were in as many subsets."""
TRAINING = ("pretrain", "fc", "finetune", "post_train")


@dataclass(frozen=True)
class Caution:
    """A key of the configuration, what was found there, and what to do.

    A `hint` is no fault of the experiment's: it says what will matter for those that follow.
    """

    key: str
    found: str
    todo: str
    hint: bool = False


def repeats(counts: NDArray[np.int64], subsets: int, shots: int) -> NDArray[np.float64]:
    """Return in how many of N_D subsets an image of each class is expected: N_D min(1, N_C / n_c), (C,)."""
    return subsets * np.minimum(1.0, shots / np.maximum(counts, 1))


def cautions(
    experiment: ExperimentConfig,
    base: ExperimentConfig | None,
    counts: NDArray[np.int64],
    validation_counts: NDArray[np.int64] | None = None,
    needed_bytes: int = 0,
    free_bytes: int | None = None,
) -> list[Caution]:
    """Return what is worth a second look.

    Arguments:
    - base: the preset that the experiment starts from; None if that is the defaults.
    - counts: (C,) training images a class; validation_counts: (C,) those of the validation split, if there is one.
    - needed_bytes, free_bytes: what the run adds to the store, and what is free there, if that is known.
    """
    return [
        *_on_sampling(experiment, counts),
        *_on_batches(experiment, counts),
        *(caution for stage in TRAINING for caution in _on_training(experiment, base, stage)),
        *_on_choices(experiment, validation_counts),
        *_on_storage(needed_bytes, free_bytes),
        *_on_comparing(experiment, validation_counts),
    ]


def _on_sampling(experiment: ExperimentConfig, counts: NDArray[np.int64]) -> Iterator[Caution]:
    sampling = experiment.sampling
    if sampling.lists:
        return
    short = int((counts < sampling.shots).sum())
    if short:
        yield Caution(
            "sampling.shots",
            f"{short:,} of {len(counts):,} classes have fewer than {sampling.shots} training images; they give all "
            "they have to every subset, so none is balanced, and all fine-tunes see the same images of them",
            f"collect images of these classes, or lower sampling.shots (the rarest has {counts.min():,})",
        )
    expected = float(repeats(counts, sampling.num_subsets, sampling.shots).max())
    if expected > PAPER_SUBSETS:
        yield Caution(
            "sampling.num_subsets",
            f"an image of the rarest class is expected in {expected:.1f} of {sampling.num_subsets} subsets: the "
            "fine-tunes may all learn the same few images by heart",
            f"take {PAPER_SUBSETS} subsets, or try several numbers: btm ablate subsets",
        )
    if sampling.num_subsets > STUDIED_SUBSETS:
        yield Caution(
            "sampling.num_subsets",
            f"{sampling.num_subsets} subsets are more than the paper studied; from 10 to {STUDIED_SUBSETS} its H-mean "
            "fell from 29.7 to 15.2 (Table 7)",
            f"take {PAPER_SUBSETS}, unless a validation split shows that more are better",
        )


def _on_batches(experiment: ExperimentConfig, counts: NDArray[np.int64]) -> Iterator[Caution]:
    images = {
        "pretrain": 0 if experiment.pretrain.checkpoint else int(counts.sum()),
        "finetune": 0 if experiment.sampling.lists else subset_images(counts, experiment.sampling.shots),
    }
    for stage, there in images.items():
        size = getattr(experiment, stage).batch_size
        if there and size > there:
            what = "a balanced subset holds" if stage == "finetune" else "the training split holds"
            yield Caution(
                f"{stage}.batch_size",
                f"a batch is to hold {size:,} images, {what} {there:,}: an epoch is one step of the optimizer",
                f"lower {stage}.batch_size, and lr with it",
            )


def _on_training(experiment: ExperimentConfig, base: ExperimentConfig | None, stage: str) -> Iterator[Caution]:
    config: TrainConfig | None = getattr(experiment, stage)
    if config is None or (stage == "pretrain" and experiment.pretrain.checkpoint is not None):
        return
    before = _before(config, base, stage)
    if before is not None and config.batch_size != before[0]:
        size, lr = before
        yield Caution(
            f"{stage}.batch_size",
            f"it is {config.batch_size} in place of {size}, and lr is still the {lr:g} that was meant for {size}",
            f"scale lr with the batch: {stage}.lr={lr * config.batch_size / size:.3g} (linear scaling, Goyal et al., "
            "2017), unless you tried it",
        )
    if config.schedule == "step":
        unreached = [epoch for epoch in config.milestones if epoch >= config.epochs]
        if unreached:
            names = ", ".join(map(str, unreached))
            yield Caution(
                f"{stage}.milestones",
                f"the learning rate is to fall after epoch {names}, and training ends after {config.epochs}",
                f"scale {stage}.milestones with {stage}.epochs",
            )
    if config.warmup_epochs >= config.epochs:
        yield Caution(
            f"{stage}.warmup_epochs",
            f"warm-up takes {config.warmup_epochs} epochs of {config.epochs}: the learning rate never leaves it",
            f"lower {stage}.warmup_epochs",
        )


def _before(config: TrainConfig, base: ExperimentConfig | None, stage: str) -> tuple[int, float] | None:
    """Return batch size and learning rate that were tuned together, if the learning rate is still that one."""
    if base is None:
        if "lr" in config.model_fields_set:
            return None
        fields = type(config).model_fields
        return fields["batch_size"].default, fields["lr"].default
    own: TrainConfig | None = getattr(base, stage)
    return None if own is None or own.lr != config.lr else (own.batch_size, own.lr)


def _on_choices(experiment: ExperimentConfig, validation_counts: NDArray[np.int64] | None) -> Iterator[Caution]:
    merge = experiment.merge
    if merge.strategy == "uniform":
        return
    if merge.criterion == "balanced":
        cure = "set merge.criterion=validation" + (
            "" if validation_counts is not None else " and data.validation_per_class=2"
        )
        yield Caution(
            "merge.criterion",
            f"{merge.strategy} scores the ingredients on the balanced subsets, images that they were trained on",
            f"{cure}, or take merge.strategy=uniform: after post-training it was as good in the paper (Table 6)",
        )
    elif validation_counts is not None and (validation_counts == 0).any():
        lacking = int((validation_counts == 0).sum())
        yield Caution(
            "data.validation",
            f"merge.criterion is validation, and {lacking:,} of {len(validation_counts):,} classes have no validation "
            "image: nothing is chosen for them",
            "add images of these classes, or carve a split with data.validation_per_class",
        )


def _on_storage(needed: int, free: int | None) -> Iterator[Caution]:
    if free is not None and needed > free:
        yield Caution(
            "--store",
            f"the run adds {needed / 1e9:.1f} GB to the store, and {free / 1e9:.1f} GB are free there",
            "name another store, or make room: btm store gc",
        )


def _on_comparing(experiment: ExperimentConfig, validation_counts: NDArray[np.int64] | None) -> Iterator[Caution]:
    if validation_counts is not None or experiment.merge.strategy != "uniform":  # of other strategies more is said
        return
    yield Caution(
        "data.validation",
        "there is no validation split, so several settings could only be compared by figures of the test split, and "
        "the best of them would look better there than it is",
        "if you mean to try several, hold images back with data.validation_per_class=2, or name a split",
        hint=True,
    )
