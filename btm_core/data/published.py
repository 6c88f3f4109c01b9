"""The published data sets that presets are for: what belongs to them, and where to get it.

Counts are those of the published lists; addresses those of the data sets' own pages.
"""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btm_core.config import DataConfig
from btm_core.data.locate import short_name
from btm_core.data.long_tail import profile
from btm_core.data.readers import missing_files, read
from btm_core.data.sources import read_list, read_text, split_files
from btm_core.errors import DataError, some_of

__all__ = ["PublishedList", "PublishedSet", "check_complete", "list_digest", "published_set"]

FIRST = 3


@dataclass(frozen=True)
class PublishedList:
    """A list file as it was published.

    Fields:
    - groups: classes of many, medium and few training images, if they were published.
    - digest: `list_digest` of it, if it was at hand.
    """

    file: str
    images: int
    classes: int
    largest: int
    smallest: int
    groups: tuple[int, int, int] | None = None
    digest: str | None = None


@dataclass(frozen=True)
class PublishedSet:
    """A data set: its lists by split, and where lists and images come from."""

    name: str
    lists: dict[str, PublishedList]
    lists_from: str
    images_from: tuple[str, ...]


OLTR = "https://liuziwei7.github.io/projects/LongTail.html (Dataset: its Google Drive folder)"
SETS = (
    PublishedSet(
        "ImageNet-LT",
        {
            "train": PublishedList("ImageNet_LT_train.txt", 115_846, 1000, 1280, 5, (385, 479, 136)),
            "test": PublishedList("ImageNet_LT_test.txt", 50_000, 1000, 50, 50),
        },
        OLTR,
        (
            "https://www.image-net.org/download.php, after registration: ILSVRC 2012,",
            "ILSVRC2012_img_train.tar (138 GB; a tar a class within) for train/CLASS/*.JPEG,",
            "ILSVRC2012_img_val.tar (6 GB) for val/",
        ),
    ),
    PublishedSet(
        "Places-LT",
        {
            "train": PublishedList(
                "Places_LT_train.txt",
                62_500,
                365,
                4980,
                5,
                (131, 163, 71),
                "545e2277cb6b370b79bfb3f714a2cb4999b1c6b92ca3e4b3c4547e54c2110fff",
            ),
            "test": PublishedList(
                "Places_LT_test.txt",
                36_500,
                365,
                100,
                100,
                None,
                "34d8314e282b2408473fa984d9abafdfa9e3382382f892f6bb079c7ad1a12fad",
            ),
        },
        OLTR,
        (
            "http://places2.csail.mit.edu/download.html, Places365-Standard, small images (256 x 256):",
            "train_256_places365standard.tar (md5 53ca1c756c3d1e7809517cc47c5561c5) for data_256/,",
            "val_256.tar (md5 e27b17d8d44f4af9a78502beb927f808) for val_256/",
        ),
    ),
    PublishedSet(
        "iNaturalist 2018",
        {
            "train": PublishedList("iNaturalist18_train.txt", 437_513, 8142, 1000, 2),
            "test": PublishedList(
                "iNaturalist18_val.txt",
                24_426,
                8142,
                3,
                3,
                None,
                "7990992e35aa3e58b2bfb0133eae0ebeefba9a47808bfacf2ab07f1e9e2565bc",
            ),
        },
        "https://github.com/facebookresearch/classifier-balancing (data/iNaturalist18); or do without: set data.format "
        "to inaturalist, data.train to train2018.json and data.test to val2018.json",
        (
            "https://github.com/visipedia/inat_comp/tree/master/2018:",
            "train_val2018.tar.gz (120 GB, md5 b1c6952ce38f31868cc50ea72d066cc3) for train_val2018/",
        ),
    ),
)


def published_set(config: DataConfig) -> PublishedSet | None:
    """Return the published data set that a configuration names by its training list, None for any other."""
    name = posixpath.basename(config.train or "")
    return next((known for known in SETS if known.lists["train"].file == name), None)


def list_digest(paths: Sequence[str], labels: NDArray[np.int64]) -> str:
    """Return a sha256 (hex) of a list that is the same in whatever order and for whatever tree it is written."""
    lines = sorted(f"{short_name(path)} {label}\n" for path, label in zip(paths, labels.tolist(), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_complete(config: DataConfig, known: PublishedSet) -> None:
    """Raise one DataError that says what of a published set is missing or differs, and where to get it."""
    problems, lists = [], False
    try:
        files = list(split_files(config))
    except DataError as error:  # no root yet
        problems, lists, files = [str(error)], True, []
    for split, file in files:
        if split in known.lists:
            found = _list_problems(file, known.lists[split])
            problems += [f"data.{split}: {problem}" for problem in found]
            lists = lists or bool(found)
    missing = [] if problems else _missing_images(config)
    if not problems and not missing:
        return
    lines = problems + missing
    if lists:
        lines += ["", f"The lists are at {known.lists_from}"]
        lines += [f"They belong into {config.root}, or name them by data.train and data.test."]
    lines += ["", *(["The images:"] if lists else ["They are at"]), *(f"  {line}" for line in known.images_from)]
    lines += [f"They belong below {config.root}; folders above CLASS/FILE may be called as you like."]
    raise DataError(f"{known.name} is not complete in {config.root}:\n" + "\n".join(f"  {x}".rstrip() for x in lines))


def _list_problems(file: str, known: PublishedList) -> list[str]:
    try:
        text = read_text(file)
    except DataError as error:
        if "does not exist" not in str(error):
            raise
        return [f"{file} is missing: {known.images:,} lines of `path label`"]
    paths, labels = read_list(text, file)
    if not len(labels):
        return [f"{file} is empty; published are {known.images:,} lines"]
    counts = np.bincount(labels)
    shape = profile(counts)
    facts = [
        ("lines", len(paths), known.images),
        ("classes", len(counts), known.classes),
        ("images in the largest class", shape.largest, known.largest),
        ("images in the smallest class", shape.smallest, known.smallest),
    ]
    if known.groups is not None:
        names = ("many", "medium", "few")
        found = (shape.many, shape.medium, shape.few)
        pairs = zip(found, known.groups, strict=True)
        facts += [(f"classes of {name} images", one, other) for name, (one, other) in zip(names, pairs, strict=True)]
    wrong = [
        f"{file} has {found:,} {what}; published are {wanted:,}" for what, found, wanted in facts if found != wanted
    ]
    if not wrong and known.digest is not None and list_digest(paths, labels) != known.digest:
        wrong = [f"{file} has as many lines as the published list, but lists other images or labels"]
    return wrong


def _missing_images(config: DataConfig) -> list[str]:
    catalog = read(config)
    gone = set(missing_files(catalog)[0])
    lines = []
    for split in catalog.splits:
        lost = [path for path in split.paths or () if path in gone]
        if lost:
            folders = Counter(posixpath.dirname(path) for path in lost)
            whole = f" in {len(folders):,} folders" if len(folders) > 1 else ""
            lines.append(f"{split.name}: {len(lost):,} of {len(split):,} images are missing{whole}:")
            lines += some_of(lost, FIRST).splitlines()
    return lines
