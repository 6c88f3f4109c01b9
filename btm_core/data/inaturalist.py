"""iNaturalist 2018's annotation files: JSON with images, annotations and, in some, categories.

https://github.com/visipedia/inat_comp/tree/master/2018
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.errors import DataError, some_of

__all__ = ["parse_inaturalist"]


def parse_inaturalist(text: str, where: str) -> tuple[list[str], NDArray[np.int64], tuple[str, ...] | None]:
    """Return paths (N,), labels (N,) and, if the file has categories, class names (C,).

    A label is the category_id. Raises DataError with the file and what is missing or said twice.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON, as iNaturalist's annotation files are: {error}") from None
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{where} has no list {key!r}; expected iNaturalist's images and annotations")
    files: dict[Any, str] = _mapping(document["images"], "id", "file_name", f"{where}, images")
    label_of: dict[Any, int] = _mapping(document["annotations"], "image_id", "category_id", f"{where}, annotations")
    _refuse(
        where, "annotations are of an image that is not listed", [image for image in label_of if image not in files]
    )
    _refuse(where, "images have no annotation", [files[image] for image in files if image not in label_of])
    _refuse(
        where,
        "images have a category_id that is no whole number from 0",
        [files[image] for image, label in label_of.items() if type(label) is not int or not 0 <= label < 2**31],
    )
    labels = np.asarray([label_of[image] for image in files], dtype=np.int64)
    return [str(path) for path in files.values()], labels, _names(document.get("categories"), where)


def _mapping(entries: list[Any], key: str, value: str, where: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or key not in entry or value not in entry:
            raise DataError(f"{where}[{number}] lacks {key} or {value}")
        if type(entry[key]) not in (int, str):
            raise DataError(f"{where}[{number}]: {key} is neither a number nor text")
        if entry[key] in found:
            raise DataError(f"{where}[{number}]: {key} {entry[key]} is there twice")
        found[entry[key]] = entry[value]
    return found


def _names(categories: Any, where: str) -> tuple[str, ...] | None:
    if not categories:
        return None
    if not isinstance(categories, list):
        raise DataError(f"{where}: categories are no list of id and name, but {type(categories).__name__}")
    names = _mapping(categories, "id", "name", f"{where}, categories")
    if set(names) != set(range(len(names))):
        raise DataError(f"{where}, categories: ids must be 0 .. {len(names) - 1} without gaps")
    return tuple(str(names[c]) for c in range(len(names)))


def _refuse(where: str, problem: str, items: list[Any]) -> None:
    if items:
        raise DataError(f"{where}: {len(items)} {problem}:\n{some_of(items)}")
