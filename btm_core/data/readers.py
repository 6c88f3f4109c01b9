"""One reader a data format; each returns a Catalog. `scan` picks the reader, cuts the long tail and checks.

Paths are relative to `data.root`, which is a folder or an fsspec URL such as s3://bucket/images.
"""

import gzip
import logging
import posixpath
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btm_core.config import DataConfig
from btm_core.data.catalog import Catalog, Split
from btm_core.data.cifar import read_cifar100
from btm_core.data.decoding import MAX_IMAGE_BYTES
from btm_core.data.inaturalist import parse_inaturalist
from btm_core.data.locate import locate
from btm_core.data.long_tail import long_tail_indices
from btm_core.data.sources import ask_root, class_names, inside, open_root, read_list, read_text, split_files
from btm_core.data.tables import read_tables
from btm_core.errors import DataError, some_of
from btm_core.seeding import numpy_generator

__all__ = ["IMAGE_SUFFIXES", "cut", "missing_files", "read", "scan"]

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def scan(config: DataConfig) -> Catalog:
    """Read labels and paths (or small pixels), cut the long tail if asked, and check all that needs no decoding.

    Raises DataError with one message for whatever is wrong; see `Catalog.check`.
    """
    catalog = read(config)
    catalog.check()
    if config.imbalance_factor is not None:
        catalog = cut(catalog, config)
        catalog.check()
    if config.validation_per_class is not None:
        catalog = _carved(catalog, config.validation_per_class, config.split_seed)
        log.info(
            "%d training images, at most %d a class, are the validation split now",
            len(catalog.splits[2]),
            config.validation_per_class,
        )
    _check_files_exist(catalog)
    return catalog


def read(config: DataConfig) -> Catalog:
    """Return what the source lists, as it lists it: nothing is cut, carved or checked.

    Raises DataError if it cannot be read as what it is said to be.
    """
    return _READERS[config.format](config)


def cut(catalog: Catalog, config: DataConfig) -> Catalog:
    """Return a balanced catalog with the long tail cut that `imbalance_factor` asks for."""
    assert config.imbalance_factor is not None
    kept = long_tail_indices(catalog.train.labels, config.imbalance_factor, config.split_seed)
    return replace(catalog, train=catalog.train.take(kept))


def _carved(catalog: Catalog, per_class: int, seed: int) -> Catalog:
    """Take `per_class` images of each class out of training, at most half of a class, as the validation split."""
    labels = catalog.train.labels
    random = numpy_generator("validation", seed)
    taken = []
    for c in range(catalog.num_classes):
        positions = random.permutation(np.flatnonzero(labels == c))
        taken.append(positions[: min(per_class, len(positions) // 2)])
    chosen = np.sort(np.concatenate(taken))
    if not len(chosen):
        raise DataError("no validation split can be carved: every class has a single training image")
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    validation = replace(catalog.train.take(chosen), name="validation")
    return replace(catalog, train=catalog.train.take(rest), validation=validation, carved=True)


def _read_digits(config: DataConfig) -> Catalog:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (E. Alpaydin, C. Kaynak, UCI 1998), split by class."""
    table = _digits_table()
    pixels = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)[:, None]
    labels = table[:, -1].astype(np.int64)
    random = numpy_generator("digits", config.split_seed)
    train, test = [], []
    for c in range(10):
        positions = random.permutation(np.flatnonzero(labels == c))
        test.append(positions[: config.test_per_class])
        train.append(positions[config.test_per_class :])
    splits = [
        Split(name, labels, pixels=pixels).take(np.concatenate(parts))
        for name, parts in (("train", train), ("test", test))
    ]
    return Catalog(tuple(str(c) for c in range(10)), splits[0], splits[1])


def _digits_table() -> NDArray[np.float64]:
    """Return what `sklearn.datasets.load_digits` reads, (1797, 65), label last, without importing scikit-learn.

    That takes as long as all the rest of what a run checks before it starts: SciPy and pandas come with it.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    with gzip.open(Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")) as file:
        return np.loadtxt(file, delimiter=",")


def _read_cifar100(config: DataConfig) -> Catalog:
    return read_cifar100(Path(config.root or ".btm/data").expanduser(), config.download)


def _read_lists(config: DataConfig) -> Catalog:
    splits = []
    for name, file in split_files(config):
        text = read_text(file, f"data.{name}")
        paths, labels = read_list(text, file)
        lines = [f"line {number}" for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        assert config.root is not None
        splits.append(Split(name, labels, locate(config.root, inside(paths, file, lines))))
    return _named(config, splits)


def _read_inaturalist(config: DataConfig) -> Catalog:
    splits: list[Split] = []
    names: tuple[str, ...] | None = None
    for name, file in split_files(config):
        paths, labels, own_names = parse_inaturalist(read_text(file, f"data.{name}"), file)
        names = names or own_names
        rows = [f"image {number}" for number in range(1, len(paths) + 1)]
        splits.append(Split(name, labels, inside(paths, file, rows)))
    return _named(config, splits, class_names(config) or names)


def _read_tables(config: DataConfig) -> Catalog:
    return _named(config, *read_tables(config))


def _read_image_folder(config: DataConfig) -> Catalog:
    """`<root>/<train>/<class name>/.../image`; classes in sorted order, as torchvision's ImageFolder numbers them."""
    fs, root = open_root(config)
    found: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "test", *(["validation"] if config.validation else [])):
        [folder] = inside([getattr(config, split) or split], f"data.{split}", ["value"])
        top = f"{root}/{folder}"
        assert config.root is not None
        if not ask_root(fs, config.root, partial(fs.isdir, top)):
            raise DataError(
                f"{top} is not a folder: image_folder expects one sub-folder a class in it; set data.{split}"
            )
        found[split] = {
            label: [f"{folder}/{label}/{path}" for path in sorted(paths) if path.lower().endswith(IMAGE_SUFFIXES)]
            for label, paths in ask_root(fs, config.root, partial(_class_folders, fs, top)).items()
        }
    if not any(found["train"].values()):
        top = f"{root}/{config.train or 'train'}"
        raise DataError(
            f"{top} holds no image ({', '.join(IMAGE_SUFFIXES)}): image_folder expects one sub-folder a class, with "
            "its images; correct data.root or data.train"
        )
    names = class_names(config) or tuple(sorted(found["train"]))
    unknown = sorted(set().union(*found.values()) - set(names))
    if unknown:
        where = "in data.class_names" if config.class_names else "among the training folders"
        raise DataError(f"{len(unknown)} class folders are not {where}; add them there, or drop:\n{some_of(unknown)}")
    splits = []
    for split, by_class in found.items():
        pairs = [(path, c) for c, label in enumerate(names) for path in by_class.get(label, [])]
        labels = np.asarray([c for _, c in pairs], dtype=np.int64)
        splits.append(Split(split, labels, tuple(path for path, _ in pairs)))
    return _named(config, splits, names)


def _class_folders(fs: Any, top: str) -> dict[str, list[str]]:
    """Return the files below each folder in `top`, by its name, in sorted order; paths are relative to the folder."""
    found: dict[str, list[str]] = {}
    if "file" in fs.protocol:
        for entry in sorted(fs.ls(top, detail=False)):
            if fs.isdir(entry):  # follows links, as find alone would not
                found[posixpath.basename(entry)] = [path[len(entry) + 1 :] for path in fs.find(entry)]
        return found
    for path in sorted(fs.find(top)):  # a request a thousand files, not some a folder
        label, _, below = path[len(top) + 1 :].partition("/")
        if below:
            found.setdefault(label, []).append(below)
    return found


_READERS: dict[str, Callable[[DataConfig], Catalog]] = {
    "digits": _read_digits,
    "cifar100": _read_cifar100,
    "list": _read_lists,
    "inaturalist": _read_inaturalist,
    "csv": _read_tables,
    "parquet": _read_tables,
    "image_folder": _read_image_folder,
}


def _named(config: DataConfig, splits: list[Split], names: tuple[str, ...] | None = None) -> Catalog:
    """Give the classes names: those they came with, those of `data.class_names`, their folders', or the numbers."""
    train, test, *others = splits
    names = names or class_names(config)
    if names is None:
        count = int(train.labels.max()) + 1 if len(train) else 0
        if count > len(train) > 0:
            at = train.paths[int(train.labels.argmax())] if train.paths else "an image"
            raise DataError(
                f"label {count - 1} of {at} is out of range: with {len(train)} training images there cannot be "
                f"{count} classes; labels are 0, 1, 2, ... without gaps"
            )
        names = _folder_names(train, count) or tuple(str(c) for c in range(count))
    return Catalog(names, train, test, root=config.root, validation=next(iter(others), None))


def _folder_names(train: Split, count: int) -> tuple[str, ...] | None:
    """Return the images' parent folders as class names if each class has one folder of its own, else None."""
    folders: dict[int, str] = {}
    for path, label in zip(train.paths or (), train.labels.tolist(), strict=True):
        folder = posixpath.basename(posixpath.dirname(path))
        if not folder or folders.setdefault(label, folder) != folder:
            return None
    unique = len(folders) == count == len(set(folders.values()))
    return tuple(folders[c] for c in range(count)) if unique else None


def missing_files(catalog: Catalog) -> tuple[list[str], list[str]]:
    """Return the paths of images that are not there, and of those that have more bytes than an image may have."""
    if catalog.root is None or catalog.train.paths is None:
        return [], []
    from btm_core.data.files import stat_files

    paths = [path for split in catalog.splits for path in split.paths or ()]
    found = dict(zip(paths, stat_files(catalog.root, paths), strict=True))
    large = [path for path, stat in found.items() if stat is not None and int(stat[0]) > MAX_IMAGE_BYTES]
    return [path for path in paths if found[path] is None], large


def _check_files_exist(catalog: Catalog) -> None:
    count = sum(len(split) for split in catalog.splits)
    missing, large = missing_files(catalog)
    if missing:
        raise DataError(
            f"{len(missing)} of {count} listed images are missing below {catalog.root}:\n{some_of(missing)}"
        )
    if large:
        raise DataError(
            f"{len(large)} of {count} listed images below {catalog.root} have more than {MAX_IMAGE_BYTES} bytes; "
            f"scale them down:\n{some_of(large)}"
        )
