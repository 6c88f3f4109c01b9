"""What kind of data set lies at a path or URL, and how an experiment would name it.

Nothing is guessed that is not seen: a split is found by its file's or folder's name, a column by its heading, and where
the paths of a list start by looking for the first image.
"""

import io
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from btm_core.config import DataConfig, ExperimentConfig
from btm_core.data.catalog import Catalog, Split
from btm_core.data.readers import IMAGE_SUFFIXES
from btm_core.data.sources import ask_root, read_list, read_text
from btm_core.errors import DataError, StoreError, some_of
from btm_core.storage import open_filesystem, read_bytes

__all__ = ["Recognised", "experiment_name", "recognise", "recognised_experiment", "without_test"]

FORMATS = {".txt": "list", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".json": "inaturalist"}
TEST, VALIDATION = ("test", "testing"), ("validation", "valid", "val", "dev")
PATHS = ("path", "image_path", "filepath", "file_path", "file", "filename", "file_name", "image", "img")
LABELS = ("label", "class", "category", "class_name", "target", "species", "label_name", "class_id", "category_id", "y")
EXPECTED = (
    "expected a folder with train/CLASS/*.jpg and test/CLASS/*.jpg, with CLASS/*.jpg, or with lists (train.txt, "
    "test.txt), CSV, Parquet or iNaturalist's JSON files; or one such file"
)
ENOUGH = 2000
"""Files that are looked through for a first image."""


@dataclass(frozen=True)
class Recognised:
    """What was found.

    Fields:
    - fields: those of `data` in a configuration, without `input`.
    - saw: it in words.
    - unsplit: there is no test split; `fields` then name the training split in its place.
    """

    fields: dict[str, Any]
    saw: str
    unsplit: bool = False

    def config(self) -> DataConfig:
        """Return it as the data of an experiment."""
        return DataConfig(**self.fields)


class _Place:
    """A folder, local or remote."""

    def __init__(self, url: str):
        try:
            self.fs, path = open_filesystem(url)
        except StoreError as error:
            raise DataError(f"{url} cannot be reached: {error}") from None
        self.path = path.rstrip("/")
        self.local = "file" in self.fs.protocol
        self.url = self.path if self.local else url.rstrip("/")

    def ask(self, call: Callable[[], Any]) -> Any:
        return ask_root(self.fs, self.url, call)

    def is_folder(self, *parts: str) -> bool:
        return bool(self.ask(partial(self.fs.isdir, "/".join([self.path, *parts]))))

    def is_file(self, *parts: str) -> bool:
        return bool(self.ask(partial(self.fs.isfile, "/".join([self.path, *parts]))))

    def listing(self, *parts: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, without hidden ones."""
        entries = self.ask(partial(self.fs.ls, "/".join([self.path, *parts]), detail=True))
        named = [(posixpath.basename(entry["name"].rstrip("/")), entry) for entry in entries]
        seen = sorted((name, entry) for name, entry in named if name and not name.startswith("."))
        linked = {name for name, entry in seen if entry.get("islink") and self.is_folder(*parts, name)}
        folders = [name for name, entry in seen if entry["type"] == "directory" or name in linked]
        return folders, [name for name, _ in seen if name not in set(folders)]

    def has_images(self, *parts: str) -> bool:
        """Whether there is an image below a folder, at most three folders down."""
        folders, files = self.listing(*parts)
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in files[:ENOUGH]):
            return True
        return len(parts) < 4 and any(self.has_images(*parts, name) for name in folders[:3])

    def class_folders(self, *parts: str) -> list[str]:
        """Return the folders in a folder if the first of them that are not empty hold images."""
        folders, _ = self.listing(*parts)
        return folders if any(self.has_images(*parts, name) for name in folders[:3]) else []

    @property
    def parent(self) -> str:
        return posixpath.dirname(self.url)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


def recognise(location: str, test: str | None = None) -> Recognised:
    """Return what lies at a path or URL.

    Arguments:
    - test: the file of the test split, if `location` is that of the training split and no name tells which it is.

    Raises DataError that says what was seen and what was expected.
    """
    place = _Place(location if "://" in location else str(Path(location).expanduser().resolve()))
    if place.is_folder():
        return _folder(place)
    if place.is_file():
        return _file(_Place(place.parent), place.name, test and _absolute(test))
    raise DataError(f"{location} does not exist; {EXPECTED}")


def recognised_experiment(location: str) -> tuple[ExperimentConfig, Recognised]:
    """Return what lies at a path or URL as an experiment with all else at its defaults. Raises as `recognise`."""
    found = recognise(location)
    name = experiment_name(posixpath.basename(location.rstrip("/")) or location)
    return ExperimentConfig(name=name, data=found.config()), found


def experiment_name(text: str) -> str:
    """Return a text as an experiment may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", posixpath.splitext(text)[0]).strip("-._")[:64] or "experiment"


def without_test(catalog: Catalog) -> Catalog:
    """Return a catalog with nothing in its test split."""
    empty = catalog.test.labels[:0]
    return replace(catalog, test=Split("test", empty, paths=()))


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _folder(place: _Place) -> Recognised:
    folders, files = place.listing()
    training = [name for name in files if _says(name, ("train", "training")) and _suffix(name) in FORMATS]
    for name in training:
        if _partner(files, name, TEST + VALIDATION):
            return _file(place, name, None)
    top = next((name for name in folders if name.lower() in ("train", "training")), None)
    in_folders = None
    if top is not None and (classes := place.class_folders(top)):
        in_folders = _split_folders(place, folders, top, len(classes))
    if training and (in_folders is None or in_folders.unsplit):  # a list says more than folders do
        return _file(place, training[0], None)
    if in_folders is not None:
        return in_folders
    tables = [name for name in files if _suffix(name) in FORMATS]
    classes = place.class_folders()
    if len(tables) == 1 and len(classes) < 2:
        return _file(place, tables[0], None)
    if classes:
        parent, root = place.parent, place.name
        if "://" in place.url and parent.endswith(":/"):
            raise DataError(f"{place.url} has class folders at the top of a bucket: put them into a folder of it")
        fields = {"format": "image_folder", "root": parent, "train": root, "test": root}
        return Recognised(fields, f"{len(classes):,} folders of images, one a class, and no test split", unsplit=True)
    seen = some_of([*(f"{name}/" for name in folders), *files]) or "  nothing"
    raise DataError(f"no data set was recognised in {place.url}; {EXPECTED}. There is:\n{seen}")


def _split_folders(place: _Place, folders: Sequence[str], top: str, classes: int) -> Recognised:
    by_name = {name.lower(): name for name in folders}
    tests = [by_name[name] for name in TEST if name in by_name and place.class_folders(by_name[name])]
    others = [by_name[name] for name in VALIDATION if name in by_name and place.class_folders(by_name[name])]
    fields: dict[str, Any] = {"format": "image_folder", "root": place.url, "train": top}
    if not tests and not others:
        return Recognised(
            fields | {"test": top}, f"{classes:,} folders of images in {top}, one a class, and no test split", True
        )
    fields["test"] = (tests or others)[0]
    if tests and others:
        fields["validation"] = others[0]
    names = ", ".join(fields[key] for key in ("train", "test", "validation") if key in fields)
    return Recognised(fields, f"a folder a class ({classes:,}) in {names}")


def _says(name: str, words: Sequence[str]) -> bool:
    """Whether a file is called by one of the words, with whatever before or after it: Places_LT_train.txt."""
    parts = re.split(r"[^a-z]+", posixpath.splitext(name)[0].lower())
    return any(part in words for part in parts)


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _partner(files: Sequence[str], train: str, words: Sequence[str]) -> str | None:
    """Return the file that is called as the training file is, but for the name of the split."""
    pattern, named = re.subn(r"train(ing)?", "(.+)", re.escape(train), count=1, flags=re.IGNORECASE)
    for word in words if named else ():
        for other in files:
            found = re.fullmatch(pattern, other, re.IGNORECASE)
            if found and found[1].lower() == word:
                return other
    return None


def _file(place: _Place, name: str, test: str | None) -> Recognised:
    kind = FORMATS.get(_suffix(name))
    if kind is None:
        raise DataError(f"{place.url}/{name} is no list (.txt), CSV, Parquet or JSON file; {EXPECTED}")
    _, files = place.listing()
    partner = _partner(files, name, TEST) or _partner(files, name, VALIDATION)
    split = test or (f"{place.url}/{partner}" if partner else None)
    validation = _partner(files, name, VALIDATION) if partner and _says(partner, TEST) else None
    source = f"{place.url}/{name}"
    fields: dict[str, Any] = {"format": kind, "root": place.url, "train": source, "test": split or source}
    if validation:
        fields["validation"] = f"{place.url}/{validation}"
    fields, first = _entries(fields, source)
    fields["root"] = _root(place, first)
    for key in ("train", "test", "validation"):  # as a user would write it
        if fields.get(key, "").startswith(f"{fields['root']}/"):
            fields[key] = fields[key][len(fields["root"]) + 1 :]
    kinds = {"list": "a list", "csv": "a CSV file", "parquet": "a Parquet file", "inaturalist": "annotations"}
    if split is None:
        return Recognised(fields, f"{kinds[kind]} ({name}), and no test split", unsplit=True)
    return Recognised(fields, f"{kinds[kind]} of each split ({name}, {posixpath.basename(split)})")


def _entries(fields: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields with the columns of a table, and the paths of some images."""
    if fields["format"] == "list":
        paths, _ = read_list(read_text(source), source)
        return fields, paths[:ENOUGH]
    if fields["format"] == "inaturalist":
        try:
            images = json.loads(read_text(source))["images"]
            return fields, [str(image["file_name"]) for image in images[:ENOUGH]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(
                f"{source} is not one of iNaturalist's annotation files: no images with file_name"
            ) from None
    import pandas as pd

    data = io.BytesIO(read_bytes(source))
    try:
        table = pd.read_csv(data, nrows=100, dtype=str) if fields["format"] == "csv" else pd.read_parquet(data)
    except (ValueError, OSError) as error:
        raise DataError(f"{source} cannot be read as {fields['format']}: {error}") from None
    columns = {str(column).strip().lower(): str(column) for column in table.columns}
    path = next((columns[name] for name in PATHS if name in columns), None)
    label = next((columns[name] for name in LABELS if name in columns and columns[name] != path), None)
    if path is None or label is None:
        missing = "paths" if path is None else "labels"
        raise DataError(
            f"{source}: which column holds the {missing}? There are {', '.join(map(str, table.columns))}; expected one "
            f"called {', '.join((PATHS if path is None else LABELS)[:6])} or the like: rename it"
        )
    named = {"path_column": path} | {"label_column": label}
    return fields | named, table[path].dropna().astype(str).tolist()[:ENOUGH]


def _root(place: _Place, paths: Sequence[str]) -> str:
    """Return the folder that paths of images start from: that of the list, one in it, or one above."""
    if not paths:
        return place.url
    folders, _ = place.listing()
    for candidate in [(), *((name,) for name in folders)]:
        if place.is_file(*candidate, paths[0]):
            return "/".join([place.url, *candidate])
    above = _Place(place.parent)
    if above.path and above.is_file(paths[0]):
        return above.url
    return place.url
