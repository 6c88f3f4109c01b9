"""`btm init`: a look at the data, three questions at most, and a commented experiment that runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btm_core.errors import BTMError, ConfigError

if TYPE_CHECKING:
    from btm_core.advice import Start
    from btm_core.data.catalog import Catalog, Split
    from btm_core.data.recognising import Recognised

__all__ = ["init"]

WHERE = "Where are the images? (a folder, a list, CSV, Parquet or JSON file; a path or s3:// URL)"
START = "Start from a trained network? (its .safetensors file; nothing: train from the beginning)"
GOALS_ASKED = "What for? (try: minutes; normal; best: as long as the paper trained)"


def init(
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Folder, list, CSV, Parquet or iNaturalist JSON file; a path or URL."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The experiment.")] = Path("my.yaml"),
    data_option: Annotated[str | None, typer.Option("--data", metavar="DATA", help="The same as DATA.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="File of the test split, if its name does not tell.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Without a test split: share of each class that becomes it.")
    ] = 0.2,
    start: Annotated[
        str | None, typer.Option(metavar="FILE", help="A stage 1, or a trained backbone (.safetensors).")
    ] = None,
    goal: Annotated[str | None, typer.Option(help="try, normal or best: how long to train.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The network; default: by the size of the images.")] = None,
    size: Annotated[int | None, typer.Option(min=8, max=1024, help="Input size, pixels; default: likewise.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Look at your data and write an experiment for them, with every choice explained.

    Asks at most three questions, and none if standard input is no terminal. Data without a test split get one: lists
    beside the experiment.
    """
    from flows.start import log_to_stderr

    log_to_stderr(verbose=False)
    asking = sys.stdin.isatty() and not yes
    data = data or data_option or (_ask(WHERE) if asking else None)
    if not data:
        raise ConfigError("no data are named, and there is nobody to ask: btm init DATA")
    if start is None and asking:
        start = _ask(START, "") or None
    if goal is None and asking:
        goal = _ask(GOALS_ASKED, "normal")
    _check(output, goal or "normal", backbone, force)
    document = _write(data, output, test, test_share, start, goal or "normal", backbone, size, force)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _print(document)


def _ask(question: str, default: str | None = None) -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()


def _check(output: Path, goal: str, backbone: str | None, force: bool) -> None:
    from btm_core.advice import GOALS
    from btm_core.config import BACKBONES

    if goal not in GOALS:
        raise ConfigError(f"--goal {goal!r}: expected {', '.join(GOALS)}")
    if backbone is not None and backbone not in BACKBONES:
        raise ConfigError(f"--backbone {backbone!r}: expected one of {', '.join(BACKBONES)}")
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{output}: an experiment is a .yaml file")
    if output.exists() and not force:
        raise ConfigError(f"{output} is there already; choose another with -o, or overwrite it with --force")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder; make it first")


def _write(
    data: str,
    output: Path,
    test: str | None,
    share: float,
    start: str | None,
    goal: Any,
    backbone: str | None,
    size: int | None,
    force: bool,
) -> dict[str, Any]:
    """Write the experiment, and lists if the data have no test split. Nothing stays if the result cannot be used."""
    from btm_core.advice import Seen, advise, experiment_yaml
    from btm_core.data.glimpse import glimpse
    from btm_core.data.long_tail import class_counts, profile
    from btm_core.data.readers import read
    from btm_core.data.recognising import experiment_name, recognise
    from tasks.settings import visible_gpus

    found = recognise(data, test)
    print(f"btm: {data} is {found.saw}", file=sys.stderr)
    catalog = read(found.config())
    lists: dict[Path, str] = {}
    fields = dict(found.fields)
    if found.unsplit:
        catalog, fields, lists = _split(catalog, found, output, share)
    catalog.check()
    images = glimpse(catalog)
    tests = class_counts(catalog.test.labels, catalog.num_classes)
    started = _started(start, catalog) if start else None
    seen = Seen(catalog.class_names, catalog.train_counts, tests, images, visible_gpus(), goal, started, backbone, size)
    choices = advise(seen)
    shape = profile(catalog.train_counts)
    head = [
        f"An experiment for {data}: {found.saw}.",
        f"{shape}; {len(catalog.test):,} test images, at least {tests.min()} a class: "
        + (
            "the recall of a class with a single one is 0 or 100 %."
            if tests.min() == 1
            else f"the recall of a class goes in steps of 1/{tests.min()} at worst ({100 / tests.min():.0f} %)."
        ),
        f"Written by `btm init`. Run it: btm run {output}. Any key can be set on the way: --set finetune.lr=0.01.",
    ]
    name = experiment_name(output.name)
    text = experiment_yaml(head, name, _as_written(fields, output), choices)
    _keep(output, text, lists, force)
    return {
        "file": str(output),
        "lists": [str(path) for path in lists],
        "saw": found.saw,
        "train_images": shape.images,
        "test_images": len(catalog.test),
        "classes": shape.classes,
        "largest": shape.largest,
        "smallest": shape.smallest,
        "unreadable_in_sample": images.unreadable,
        "choices": {choice.key: choice.value for choice in choices if choice.value is not None},
    }


def _split(
    catalog: "Catalog", found: "Recognised", output: Path, share: float
) -> tuple["Catalog", dict[str, Any], dict[Path, str]]:
    """Return the catalog with a test split, the fields of `data` that name it, and the lists to write."""
    from btm_core.data.files import content_digests
    from btm_core.data.listing import list_text, names_text
    from btm_core.data.recognising import without_test
    from btm_core.data.splitting import split_off_test
    from flows.start import settings_of

    assert catalog.root is not None and catalog.train.paths is not None
    if catalog.num_classes < 2:
        catalog.check()
    print(f"btm: there is no test split: looking for copies among {len(catalog.train):,} images first", file=sys.stderr)
    digests = content_digests(catalog.root, catalog.train.paths, settings_of({}).cache)
    split = split_off_test(without_test(catalog), digests, share, seed=0)
    folder = found.fields["train"] if found.fields["format"] == "image_folder" else None
    if folder:  # as the classes lie in it
        split = replace(split, root=f"{split.root}/{folder}", train=_below(split.train), test=_below(split.test))
    files = {name: output.with_name(f"{output.stem}-{name}.txt") for name in ("train", "test", "classes")}
    lists = {files[part.name]: list_text(part) for part in (split.train, split.test)}
    lists[files["classes"]] = names_text(split.class_names)
    fields = {"format": "list", "root": split.root, "train": files["train"].name, "test": files["test"].name}
    return split, fields | {"class_names": files["classes"].name}, lists


def _below(part: "Split") -> "Split":
    """Return a split with paths that start one folder further down."""
    return replace(part, paths=tuple(path.split("/", 1)[1] for path in part.paths or ()))


def _started(file: str, catalog: "Catalog") -> "Start":
    """Return what a checkpoint says of itself: a stage 1 for these classes, or a backbone."""
    from btm_core.advice import Start
    from btm_core.checkpoints import read_metadata

    path = Path(file).expanduser()
    metadata = read_metadata(path)
    if metadata is None:
        raise ConfigError(
            f"{file} does not say what network it is; make one that does: btm import-checkpoint {file} -o "
            "stage1.safetensors --data my.yaml"
        )
    same = metadata.class_names == tuple(catalog.class_names)
    return Start(
        "checkpoint" if same else "initial",
        str(path.resolve()),
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


def _keep(output: Path, text: str, lists: dict[Path, str], force: bool) -> None:
    """Write the files, if the experiment can be loaded and its data pass the checks of a run."""
    from btm_core.config import load_experiment
    from tasks.data import scan_ahead

    there = [path for path in lists if path.exists()]
    if there and not force:
        raise ConfigError(f"{there[0]} is there already; choose another -o, or overwrite with --force")
    draft = output.with_name(f".{output.name}.draft")
    before = {path: path.read_bytes() for path in there}
    try:
        for path, content in lists.items():
            path.write_text(content, encoding="utf-8")
        draft.write_text(text, encoding="utf-8")
        scan_ahead(load_experiment(draft).data)
        draft.replace(output)
    except OSError as error:
        raise ConfigError(f"{output.parent} cannot be written to: {error.strerror}") from None
    except BTMError:
        for path in lists:
            path.unlink(missing_ok=True)
        for path, old in before.items():
            path.write_bytes(old)
        raise
    finally:
        draft.unlink(missing_ok=True)


def _print(document: dict[str, Any]) -> None:
    from flows.printing import as_typed

    print(
        f"{document['train_images']:,} training and {document['test_images']:,} test images in "
        f"{document['classes']:,} classes, {document['largest']:,} to {document['smallest']:,} training images a class."
    )
    for key in ("model.backbone", "data.input.size", "pretrain.epochs", "sampling.num_subsets", "sampling.shots"):
        if key in document["choices"]:
            print(f"  {key:<22} {document['choices'][key]}")
    if document["unreadable_in_sample"]:
        print(f"{document['unreadable_in_sample']} of the images looked at cannot be decoded: btm data inspect tells.")
    for file in [*document["lists"], document["file"]]:
        print(f"Wrote {file}")
    print("\nWhat to type next:")
    print(f"  {as_typed('btm')} data inspect {document['file']}   # copies, unreadable images, suspicious labels")
    print(f"  {as_typed('btm')} run {document['file']}")
