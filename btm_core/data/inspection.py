"""What is in a data set, and what to do about it: profile, sizes, unreadable images, copies, suspicious labels.

An inspection reports what a run would refuse, and what no run can see. N images of all splits, in the order of the
splits: training, test, validation.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.config import DataConfig
from btm_core.data.catalog import Catalog, Split
from btm_core.data.copies import Copies, find_copies, flat_images
from btm_core.data.long_tail import FEW_BELOW, MANY_ABOVE, class_counts, profile
from btm_core.data.looking import Looks, Tell, look_at_files, look_at_pixels
from btm_core.data.reader import GONE
from btm_core.data.readers import cut, read
from btm_core.data.recognising import without_test
from btm_core.data.sources import read_text, split_files
from btm_core.errors import DataError

__all__ = ["FEW_TEST", "SERIOUS", "Finding", "Inspection", "inspect"]

FEW_TEST = 20
"""A recall measured on fewer test images goes in steps of more than 5 %."""
SERIOUS = frozenset({"refused", "missing", "unreadable", "leaks", "labels"})
"""Findings that a run refuses, or that make its figures wrong."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found: how often, where, and what to do."""

    kind: str
    title: str
    count: int
    items: list[Any]
    """Strings, or lists of strings where copies belong together."""
    advice: str

    @property
    def serious(self) -> bool:
        """Whether a run refuses it, or gives wrong figures."""
        return self.kind in SERIOUS


@dataclass(frozen=True)
class Inspection:
    """A data set as it was found. `looks` and `copies` are None where no image was looked at."""

    catalog: Catalog
    places: list[str]
    """(N,) where each image is listed, and what it is called."""
    findings: list[Finding]
    looks: Looks | None = None
    copies: Copies | None = None
    splits: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return all of it for programs."""
        counts = {split.name: class_counts(split.labels, self.catalog.num_classes) for split in self.catalog.splits}
        return {
            "root": self.catalog.root,
            "classes": self.catalog.num_classes,
            "splits": self.splits,
            "per_class": [
                {"class": name, "label": c, **{split: int(n[c]) for split, n in counts.items()}}
                for c, name in enumerate(self.catalog.class_names)
            ],
            "images": None if self.looks is None else _images(self.looks),
            "findings": [asdict(finding) | {"serious": finding.serious} for finding in self.findings],
        }


def inspect(
    config: DataConfig, shots: int, tell: Tell | None = None, *, images: bool = True, unsplit: bool = False
) -> Inspection:
    """Look at a data set: at its labels, and unless `images` is False at every image.

    Arguments:
    - shots: N_C, of balanced subsets.
    - tell: hears how many of how many images are done.
    - unsplit: there is no test split, and the configuration names the training split in its place.

    Raises DataError if the lists cannot be read, or labels name no class: then there is nothing to look at.
    """
    catalog = without_test(read(config)) if unsplit else read(config)
    _refuse_what_has_no_classes(catalog)
    findings = _refused(catalog)
    if config.imbalance_factor is not None:
        catalog = cut(catalog, config)
    places = _places(catalog, config)
    looks = copies = None
    if images:
        looks = _look(catalog, tell)
        copies = find_copies(looks)
        findings += _unusable(looks, places, catalog.root)
        findings += _copies(copies, catalog, places)
        findings += _flat(looks, places)
    findings += _short(catalog, shots)
    return Inspection(catalog, places, findings, looks, copies, _split_rows(catalog))


def _refuse_what_has_no_classes(catalog: Catalog) -> None:
    labels = np.concatenate([split.labels for split in catalog.splits])
    sound = len(catalog.train) and catalog.num_classes >= 2
    if not sound or labels.min() < 0 or labels.max() >= catalog.num_classes:
        catalog.check()


def _refused(catalog: Catalog) -> list[Finding]:
    try:
        catalog.check()
    except DataError as error:
        title, *lines = str(error).splitlines()
        cure = "`btm init DATA` makes a test split." if len(catalog.test) == 0 else ""
        return [Finding("refused", f"a run refuses these data: {title}", 1, [line.strip() for line in lines], cure)]
    return []


def _look(catalog: Catalog, tell: Tell | None) -> Looks:
    if catalog.train.paths is None:
        pixels = [split.pixels for split in catalog.splits if split.pixels is not None]
        return look_at_pixels(np.concatenate(pixels), tell)
    assert catalog.root is not None
    return look_at_files(catalog.root, [path for split in catalog.splits for path in split.paths or ()], tell)


def _places(catalog: Catalog, config: DataConfig) -> list[str]:
    """Return what to call each image so that a user finds it: list and line, and its path."""
    files = dict(split_files(config)) if config.format in ("list", "csv", "parquet") else {}
    whole = config.imbalance_factor is None  # a cut forgets which line an image was listed in
    places = []
    for split in catalog.splits:
        lines: Sequence[int] = range(1, len(split) + 1)
        if whole and config.format == "list":
            text = read_text(files[split.name], f"data.{split.name}").splitlines()
            lines = [number for number, line in enumerate(text, 1) if line.strip()]
        for position, (number, label) in enumerate(zip(lines, split.labels.tolist(), strict=False)):
            path = split.paths[position] if split.paths else f"{split.name} image {position}"
            listed = f"{posixpath.basename(files[split.name])}:{number} " if whole and files else ""
            places.append(f"{listed}{path} ({catalog.class_names[label]})")
    return places


def _n(items: Sequence[object], thing: str) -> str:
    return f"1 {thing} is" if len(items) == 1 else f"{len(items):,} {thing}s are"


def _unusable(looks: Looks, places: list[str], root: str | None) -> list[Finding]:
    gone = [places[i] for i, why in looks.problems.items() if why == GONE]
    bad = [f"{places[i]}: {why}" for i, why in looks.problems.items() if why != GONE]
    found = []
    if gone:
        advice = f"Put them below {root}, or drop their lines."
        found.append(Finding("missing", f"{_n(gone, 'listed image')} not there", len(gone), gone, advice))
    if bad:
        advice = "Repair them, or drop their lines: a run refuses them."
        found.append(Finding("unreadable", f"{_n(bad, 'image')} unreadable", len(bad), bad, advice))
    return found


def _copies(copies: Copies, catalog: Catalog, places: list[str]) -> list[Finding]:
    names = [split.name for split in catalog.splits]
    split_of = np.repeat(np.arange(len(names)), [len(split) for split in catalog.splits])
    label_of = np.concatenate([split.labels for split in catalog.splits])
    same = sorted(copies.same_file + copies.same_pixels)

    def across(group: list[int]) -> bool:
        return len(set(split_of[group].tolist())) > 1

    def contradicting(group: list[int]) -> bool:
        return len(set(label_of[group].tolist())) > 1

    def within(group: list[int]) -> bool:
        return not across(group) and not contradicting(group)

    def finding(kind: str, groups: list[list[int]], chosen: Callable[[list[int]], bool], title: str, cure: str) -> None:
        items = [[f"{names[split_of[i]]}: {places[i]}" for i in group] for group in groups if chosen(group)]
        if items:
            found.append(Finding(kind, f"{_n(items, 'picture')} {title}", len(items), items, cure))

    found: list[Finding] = []
    finding(
        "leaks",
        same,
        across,
        "in two splits, so the test would be no test",
        "Drop the training ones: --write-clean does. A run refuses those whose files are equal, and does not see those "
        "that were saved anew.",
    )
    finding(
        "labels",
        same,
        contradicting,
        "there under more than one label",
        "At most one label is right: keep its lines, and drop the others. --write-clean drops all of them "
        "from training.",
    )
    finding(
        "duplicates",
        same,
        within,
        "there several times in one split",
        "Drop all but one: --write-clean does. A balanced subset may draw the same picture several times.",
    )
    near = "Look at them: these were recognised by a coarse print, and may be two pictures of one thing."
    finding("near_leaks", copies.near, across, "nearly the same in two splits", near)
    finding("near_labels", copies.near, contradicting, "nearly the same under several labels", near)
    finding("near_duplicates", copies.near, within, "nearly the same within one split", near)
    return found


def _flat(looks: Looks, places: list[str]) -> list[Finding]:
    flat = [places[i] for i in flat_images(looks)]
    if not flat:
        return []
    return [Finding("flat", f"{_n(flat, 'image')} nearly of one colour", len(flat), flat, "Look at them.")]


def _short(catalog: Catalog, shots: int) -> list[Finding]:
    names, found = catalog.class_names, []
    for split in (catalog.train, catalog.test) if len(catalog.test) else (catalog.train,):
        least, why = (shots, "shots") if split is catalog.train else (FEW_TEST, "test")
        counts = class_counts(split.labels, catalog.num_classes)
        few = sorted(np.flatnonzero(counts < least).tolist(), key=lambda c: (counts[c], c))
        if not few:
            continue
        items = [f"{names[c]}: {counts[c]}" for c in few]
        worst = int(counts[few[0]])
        step = f"goes in steps of 1/{worst} ({100 / worst:.0f} %)" if worst else "cannot be measured"
        if why == "shots":
            title = f"fewer than {shots} training images (sampling.shots): {len(few):,} of {len(names):,} classes"
            advice = "Every balanced subset takes all that such a class has. More images of these help most."
        else:
            title = f"fewer than {FEW_TEST} test images: {len(few):,} of {len(names):,} classes"
            advice = (
                f"The recall of {names[few[0]]} {step}, so the lowest recall of all is luck in good part. Collect test "
                "images of these classes, and read intervals, not single figures."
            )
        found.append(Finding(f"few_{why}", title, len(few), items, advice))
    return found


def _split_rows(catalog: Catalog) -> list[dict[str, Any]]:
    train = catalog.train_counts
    groups = {
        "many": train > MANY_ABOVE,
        "medium": (train >= FEW_BELOW) & (train <= MANY_ABOVE),
        "few": train < FEW_BELOW,
    }
    return [_split_row(split, catalog.num_classes, train, groups) for split in catalog.splits]


def _split_row(
    split: Split, classes: int, train: NDArray[np.int64], groups: dict[str, NDArray[np.bool_]]
) -> dict[str, Any]:
    counts = class_counts(split.labels, classes)
    shape = asdict(profile(counts, train))
    images = {f"{name}_images": int(counts[members].sum()) for name, members in groups.items()}
    return {"split": split.name, **shape, **images, "median": float(np.median(counts))}


def _images(looks: Looks) -> dict[str, Any]:
    """Return sizes (width, height) and kinds of the readable images."""
    sizes = looks.sizes[looks.readable]
    kinds = Counter(looks.kinds[looks.readable].tolist())
    found: dict[str, Any] = {"looked_at": len(looks.readable), "readable": len(sizes)}
    if len(sizes):
        shorter = np.sort(sizes.min(1))
        area = np.argsort(sizes[:, 0].astype(np.int64) * sizes[:, 1], kind="stable")
        found |= {
            "smallest": sizes[area[0]].tolist(),
            "median": sizes[area[len(area) // 2]].tolist(),
            "largest": sizes[area[-1]].tolist(),
            "different": len(np.unique(sizes, axis=0)),
            "shorter_side": {str(q): int(np.percentile(shorter, q)) for q in (1, 50, 99)},
        }
    found["kinds"] = [
        {"format": looks.kind_names[kind][0], "mode": looks.kind_names[kind][1], "images": count}
        for kind, count in kinds.most_common()
    ]
    return found
