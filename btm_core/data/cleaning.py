"""Lists without what an inspection found wrong for certain."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btm_core.data.inspection import Inspection
from btm_core.data.listing import list_text, names_text
from btm_core.errors import DataError

__all__ = ["write_clean_lists"]


def write_clean_lists(inspection: Inspection, folder: Path) -> dict[str, int]:
    """Write train.txt, test.txt (validation.txt) and classes.txt; return how many images each list leaves out.

    Left out are images that are missing or cannot be decoded, training images that are in another split as well or bear
    several labels, and all but the first of those that are several times in one class of a split. Near copies stay, and
    test images of several labels: a person has to look at them.

    Raises DataError if there are no files to list, a class would lose its last image, or a list is there already.
    """
    catalog, looks, copies = inspection.catalog, inspection.looks, inspection.copies
    if catalog.train.paths is None or looks is None or copies is None:
        raise DataError("--write-clean writes lists of image files that were looked at; this data set has none")
    keep = looks.readable.copy()
    sizes = [len(split) for split in catalog.splits]
    split_of, label_of = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([s.labels for s in catalog.splits])
    for group in copies.same_file + copies.same_pixels:
        _drop(np.asarray(group), split_of, label_of, keep)
    start = 0
    lists: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for split in catalog.splits:
        kept = np.flatnonzero(keep[start : start + len(split)])
        start += len(split)
        lost = np.setdiff1d(split.labels, split.labels[kept])
        if len(lost) and split is not catalog.validation:
            names = ", ".join(catalog.class_names[c] for c in lost[:5])
            raise DataError(
                f"nothing would be left of {len(lost)} classes of the {split.name} split ({names}): add images of "
                "them, or drop the classes"
            )
        if len(split):
            lists[split.name] = list_text(split.take(kept))
            dropped[split.name] = len(split) - len(kept)
    files = {folder / f"{name}.txt": text for name, text in lists.items()}
    files[folder / "classes.txt"] = names_text(catalog.class_names)
    there = [str(file) for file in files if file.exists()]
    if there:
        raise DataError(f"{there[0]} is there already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error.strerror}; choose another folder") from None
    return dropped


def _drop(
    group: NDArray[np.int64], split_of: NDArray[np.int64], label_of: NDArray[np.int64], keep: NDArray[np.bool_]
) -> None:
    """Mark which of the images of one picture are left out."""
    training = group[split_of[group] == 0]
    if len(set(split_of[group].tolist())) > 1 or len(set(label_of[training].tolist())) > 1:
        keep[training] = False
    for split, label in {(int(split_of[i]), int(label_of[i])) for i in group}:
        members = group[(split_of[group] == split) & (label_of[group] == label) & keep[group]]
        keep[members[1:]] = False
