"""A first experiment for data that somebody has: what `btm init` writes.

What is there is recognised and looked at, a missing test split is made, and settings are chosen with their reasons.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from btm_core.advice import Choice, Goal, Seen, Start, advise, experiment_yaml
from btm_core.config import load_experiment
from btm_core.data.catalog import Catalog, Split
from btm_core.data.files import content_digests
from btm_core.data.glimpse import glimpse
from btm_core.data.listing import list_text, names_text
from btm_core.data.long_tail import class_counts, profile
from btm_core.data.readers import read, scan
from btm_core.data.recognising import Recognised, experiment_name, recognise, without_test
from btm_core.data.splitting import split_off_test
from btm_core.errors import BTMError, ConfigError

__all__ = ["FirstExperiment", "Wishes", "first_experiment"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What a user says of an experiment; None leaves it to what is seen.

    Fields:
    - test: file of the test split; test_share: of each class, if there is no test split.
    - start: safetensors file of a stage 1 or of a trained backbone, a path or URL.
    - gpus: that training may use.
    """

    goal: Goal = "normal"
    test: str | None = None
    test_share: float = 0.2
    start: str | None = None
    backbone: str | None = None
    size: int | None = None
    gpus: int = 0


@dataclass(frozen=True)
class FirstExperiment:
    """An experiment that is not written yet: its text, the lists that it needs beside it, and what it was made for."""

    output: Path
    text: str
    lists: dict[Path, str]
    saw: str
    counts: dict[str, int]
    choices: list[Choice]

    def document(self) -> dict[str, Any]:
        """Return what was seen and chosen, for programs."""
        return {
            "file": str(self.output),
            "lists": [str(path) for path in self.lists],
            "saw": self.saw,
            **self.counts,
            "choices": {choice.key: choice.value for choice in self.choices if choice.value is not None},
        }

    def write(self, *, force: bool = False) -> None:
        """Write the files, if the experiment can be loaded and its data pass the checks of a run; else none stays.

        Raises ConfigError if one is there already and not to be overwritten, and whatever is wrong with the data.
        """
        output = self.output
        there = [path for path in self.lists if path.exists()]
        if there and not force:
            raise ConfigError(f"{there[0]} is there already; choose another -o, or overwrite with --force")
        draft = output.with_name(f".{output.name}.draft")
        before = {path: path.read_bytes() for path in there}
        try:
            for path, content in self.lists.items():
                path.write_text(content, encoding="utf-8")
            draft.write_text(self.text, encoding="utf-8")
            scan(load_experiment(draft).data)
            draft.replace(output)
        except BTMError:
            for path in self.lists:
                path.unlink(missing_ok=True)
            for path, old in before.items():
                path.write_bytes(old)
            raise
        except OSError as error:
            raise ConfigError(f"{output.parent} cannot be written to: {error.strerror}; choose another -o") from None
        finally:
            draft.unlink(missing_ok=True)


def first_experiment(data: str, output: Path, wishes: Wishes, cache: Path | None = None) -> FirstExperiment:
    """Return an experiment for data at a path or URL. Raises DataError or ConfigError that says what is wrong.

    Arguments:
    - output: where it is to be written; the lists lie beside it.
    - cache: folder of digests, which a run then finds.
    """
    found = recognise(data, wishes.test)
    log.info("%s is %s", data, found.saw)
    catalog, fields, lists = read(found.config()), dict(found.fields), dict[Path, str]()
    if found.unsplit:
        catalog, fields, lists = _split(catalog, found, output, wishes.test_share, cache)
    catalog.check()
    images = glimpse(catalog)
    tests = class_counts(catalog.test.labels, catalog.num_classes)
    seen = Seen(
        catalog.class_names,
        catalog.train_counts,
        tests,
        images,
        gpus=wishes.gpus,
        goal=wishes.goal,
        start=_started(wishes.start, catalog) if wishes.start else None,
        backbone=wishes.backbone,
        size=wishes.size,
        validation=catalog.validation is not None,
    )
    choices = advise(seen)
    shape = profile(catalog.train_counts)
    least = int(tests.min())
    steps = f"goes in steps of 1/{least} at worst ({100 / least:.0f} %)"
    head = [
        f"An experiment for {data}: {found.saw}.",
        f"{shape}; {len(catalog.test):,} test images, at least {least} a class: the recall of a class "
        + (f"{steps}." if least > 1 else "with a single one is 0 or 100 %."),
        f"Written by `btm init`. Run it: btm run {output}. Any key can be set on the way: --set finetune.lr=0.01.",
    ]
    text = experiment_yaml(head, experiment_name(output.name), _as_written(fields, output), choices)
    counts = {
        "train_images": shape.images,
        "test_images": len(catalog.test),
        "classes": shape.classes,
        "largest": shape.largest,
        "smallest": shape.smallest,
        "unreadable_in_sample": images.unreadable,
    }
    return FirstExperiment(output, text, lists, found.saw, counts, choices)


def _split(
    catalog: Catalog, found: Recognised, output: Path, share: float, cache: Path | None
) -> tuple[Catalog, dict[str, Any], dict[Path, str]]:
    """Return the catalog with a test split, the fields of `data` that name it, and the lists to write."""

    assert catalog.root is not None and catalog.train.paths is not None
    if catalog.num_classes < 2:
        catalog.check()
    log.info("there is no test split: looking for copies among %s images first", f"{len(catalog.train):,}")
    digests = content_digests(catalog.root, catalog.train.paths, cache)
    split = split_off_test(without_test(catalog), digests, share, seed=0)
    folder = found.fields["train"] if found.fields["format"] == "image_folder" else None
    if folder:  # as the classes lie in it
        split = replace(split, root=f"{split.root}/{folder}", train=_below(split.train), test=_below(split.test))
    files = {name: output.with_name(f"{output.stem}-{name}.txt") for name in ("train", "test", "classes")}
    lists = {files[part.name]: list_text(part) for part in (split.train, split.test)}
    lists[files["classes"]] = names_text(split.class_names)
    fields = {"format": "list", "root": split.root, "train": files["train"].name, "test": files["test"].name}
    return split, fields | {"class_names": files["classes"].name}, lists


def _below(part: Split) -> Split:
    """Return a split with paths that start one folder further down."""
    return replace(part, paths=tuple(path.split("/", 1)[1] for path in part.paths or ()))


def _started(file: str, catalog: Catalog) -> Start:
    """Return what a checkpoint, a path or URL, says of itself: a stage 1 for these classes, or a backbone."""
    from btm_core.checkpoints import read_metadata  # imports torch

    where = file if "://" in file else Path(file).expanduser().resolve()
    metadata = read_metadata(where)
    if metadata is None:
        own, copied = (file, "") if isinstance(where, Path) else (Path(file).name, " of a copy here")
        raise ConfigError(
            f"{file} does not say what network it is; make one that does{copied}: btm import-checkpoint {own} -o "
            "stage1.safetensors --data my.yaml"
        )
    same = metadata.class_names == tuple(catalog.class_names)
    return Start(
        "checkpoint" if same else "initial",
        str(where),
        metadata.backbone,
        metadata.size,
        metadata.channels,
        metadata.mean,
        metadata.std,
    )


def _as_written(fields: dict[str, Any], output: Path) -> dict[str, Any]:
    """Return the fields with local folders and files below that of the experiment named from there."""
    folder = output.absolute().parent.resolve()
    shown = {}
    for key, value in fields.items():
        path = Path(str(value))
        below = key in ("root", "train", "test", "validation") and path.is_absolute() and path.is_relative_to(folder)
        shown[key] = str(path.relative_to(folder)) if below else value
    return shown
