"""What impatient people type: one message that says what is wrong and what to do, exit code 2, nothing lost.

Called in this process, as far as a command gets before it starts anything: a process each would take a second.
"""

import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from conftest import Btm, clean_environment, small_experiment, write_digits, write_lists
from safetensors.torch import save_file

from btm_core.errors import ConfigError
from btm_core.models import build_model
from flows.cli import main
from tasks.settings import RuntimeSettings

Typed = Callable[..., str]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have: images, lists, my.yaml, networks, and files of other kinds."""
    folder = tmp_path_factory.mktemp("things")
    root = write_digits(folder / "images")
    write_lists(root)
    experiment = small_experiment(format="list", root="images", train="train.txt", test="test.txt")
    (folder / "my.yaml").write_text(yaml.safe_dump(experiment))
    state = build_model("small_cnn", 3, 1).state_dict()
    save_file(state, folder / "ours.safetensors")
    save_file(build_model("resnet20", 3, 1).state_dict(), folder / "other.safetensors")
    torch.save(state, folder / "theirs.pth")
    torch.save(
        {name: tensor for name, tensor in state.items() if not name.startswith("head.")}, folder / "headless.pth"
    )
    (folder / "a text").write_text("a,b\nc\n")
    (folder / "text.safetensors").write_text("this is a text")
    os.mkfifo(folder / "pipe")
    for split, label in itertools.product(("train", "test"), "ab"):
        (folder / "broken" / split / label).mkdir(parents=True)
        (folder / "broken" / split / label / "1.png").write_bytes(b"no image")
    (folder / "train.json").write_text('{"a": 1}')
    (folder / "binary").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def typed(things: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Call `btm` in that folder, where it has to refuse, and return its message."""
    kept = clean_environment()
    for name in set(os.environ) - set(kept):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(things)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # another environment is another server
    loggers = [logging.getLogger(name) for name in ("btm_core", "tasks")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    was = set(things.iterdir())

    def call(*arguments: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["btm", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        assert end.value.code == 2, written.err
        assert written.out == ""
        *told, message = [part for part in written.err.split("btm: ") if part]
        assert not told or arguments[0] == "init"  # which tells what it recognised
        assert set(things.iterdir()) - was <= {things / ".btm"}
        return message.strip()

    yield call
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


IMPORT = ("import-checkpoint", "theirs.pth", "-o", "new.safetensors")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a misspelt file": (("run", "my.yml"), "the file 'my.yml' does not exist: did you mean 'my.yaml'?"),
    "a folder": (("run", "images"), "'images' is a folder, expected a preset or a YAML file"),
    "a section as a value": (("run", "my.yaml", "--set", "finetune=3"), "finetune: expected a section, that is keys"),
    "a text for a number": (
        ("run", "my.yaml", "--set", "finetune.epochs=ten"),
        "finetune.epochs: input should be a valid integer, unable to parse string as an integer, found 'ten'",
    ),
    "a list that is none": (
        ("run", "my.yaml", "--set", "sampling.lists=[a.txt]"),
        "sampling: 1 lists, but num_subsets is 2; give one list a subset",
    ),
    "lists of what has no paths": (
        ("run", "digits-lt", "--set", "sampling.num_subsets=1", "--set", "sampling.lists=[a text]"),
        "sampling.lists names images by path, but this data set has none: leave it out, and draw",
    ),
    "a list that is absent": (
        ("run", "my.yaml", "--set", "sampling.num_subsets=1", "--set", "sampling.lists=[absent.txt]"),
        "sampling.lists: absent.txt cannot be read: it does not exist",
    ),
    "class names that are absent": (
        ("run", "my.yaml", "--set", "data.class_names=absent.txt"),
        "data.class_names: absent.txt does not exist; correct data.class_names",
    ),
    "a process' memory as store": (
        ("run", "my.yaml", "--store", "memory://x"),
        "a memory:// store is seen by one process, and stages run in others: choose another store",
    ),
    "a file as store": (
        ("run", "my.yaml", "--store", "a text"),
        "a file has the name of a folder that is needed: choose another with --store",
    ),
    "a store that nobody can make": (
        ("run", "my.yaml", "--store", "/proc/btm/x"),
        "/proc/btm/x cannot be made: [Errno 2] No such file or directory: '/proc/btm'; choose another with --store",
    ),
    "workers below one": (
        ("run", "my.yaml", "--workers=-1"),
        "runtime settings: --workers (or BTM_WORKERS): input should be greater than or equal to 1, found -1",
    ),
    "an engine that is nearly one": (
        ("run", "my.yaml", "--engine", "rey"),
        "--engine (or BTM_ENGINE): expected 'local', 'ray' or 'workpool', found 'rey'; did you mean 'ray'?",
    ),
    "a network that is nearly one": (
        ("run", "my.yaml", "--set", "model.backbone=resnet5"),
        "'resnext101_32x8d', found 'resnet5'; did you mean 'resnet56'?",
    ),
    "a method that is nearly one": (
        ("run", "my.yaml", "--set", "pretrain.method.name=pasc"),
        "found {'name': 'pasc'}; did you mean 'pascl'?",
    ),
    "a folder as checkpoint": (
        ("run", "my.yaml", "--set", "pretrain.checkpoint=images"),
        "checkpoint images is a folder, expected a safetensors file",
    ),
    "torch's file as checkpoint": (
        ("run", "my.yaml", "--set", "pretrain.checkpoint=theirs.pth"),
        "theirs.pth is not a safetensors file: torch.save wrote it; make a safetensors file of it with btm import-",
    ),
    "a text to start from": (
        ("run", "my.yaml", "--set", "pretrain.initial=text.safetensors"),
        "text.safetensors is not a safetensors file: a header of",
    ),
    "nothing to start from": (
        ("run", "my.yaml", "--set", "pretrain.initial=absent.safetensors"),
        "checkpoint absent.safetensors does not exist",
    ),
    "another network to start from": (
        ("run", "my.yaml", "--set", "pretrain.initial=other.safetensors"),
        "other.safetensors is a checkpoint of another architecture (",
    ),
    "an ablation that is none": (("ablate", "gmll", "my.yaml"), "interpolation; did you mean 'gml'?"),
    "merge into a folder": (
        ("merge", "ours.safetensors", "-o", "images"),
        "images is a folder, expected a file to write, or none yet: choose another name",
    ),
    "merge below a file": (
        ("merge", "ours.safetensors", "-o", "a text/x"),
        "a file has the name of a folder that is needed: choose another place",
    ),
    "merge into a device": (
        ("merge", "ours.safetensors", "-o", "pipe"),
        "pipe is a device or a pipe, expected a file to write, or none yet: choose another name",
    ),
    "merge into the web": (
        ("merge", "ours.safetensors", "-o", "http://127.0.0.1:9/x"),
        "http://127.0.0.1:9/x cannot be written, web servers only give files: use a path or s3://bucket/name",
    ),
    "merge of a remote file without keys": (
        ("merge", "s3://bucket/a.safetensors", "-o", "x"),
        "Unable to locate credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    "import into a device": (
        (*IMPORT[:3], "pipe"),
        "pipe is a device or a pipe, expected a file to write, or none yet: choose another name",
    ),
    "import below a file": (
        (*IMPORT[:3], "a text/x"),
        "File exists: 'a text'; choose another with --output",
    ),
    "import with --set": (
        (*IMPORT, "--set", "seed=1"),
        "--set changes the experiment of --data, and none is named: add --data PRESET|FILE",
    ),
    "import with classes and no data": (
        (*IMPORT, "--classes", "a text"),
        "--classes and --sorted-by-count need a head, and --data to know the classes of the data set",
    ),
    "import with absent classes": (
        (*IMPORT, "--data", "my.yaml", "--classes", "absent"),
        "--classes: absent does not exist; correct --classes",
    ),
    "import with binary classes": (
        (*IMPORT, "--data", "my.yaml", "--classes", "binary"),
        "--classes: binary, line 1: not UTF-8 text, as it has to be",
    ),
    "import with other classes": (
        (*IMPORT, "--data", "my.yaml", "--classes", "a text"),
        "a text and the data set do not have the same classes: a,b, c, digit-0",
    ),
    "import of other data": (
        (*IMPORT, "--data", "digits-lt"),
        "the checkpoint has 3 classes, the data set of digits-lt 10: name the experiment that it was trained on with",
    ),
    "compare with --set": (
        ("compare", "ours.safetensors", "other.safetensors", "--set", "seed=1"),
        "--set changes the experiment of --data, and none is named: add --data PRESET|FILE",
    ),
    "init where nothing can be written": (
        ("init", "images", "-o", "/proc/my.yaml"),
        "/proc cannot be written to: No such file or directory; choose another -o",
    ),
    "init from what says nothing of itself": (
        ("init", "images", "-o", "new.yaml", "--start", "ours.safetensors"),
        "ours.safetensors does not say what network it is; make one that does: btm import-checkpoint ours.safetensors",
    ),
    "init of broken images": (
        ("init", "broken", "-o", "new.yaml"),
        "training images can be decoded, so their size is not known; the last: ",
    ),
    "init of another JSON": (
        ("init", "train.json", "-o", "new.yaml"),
        "train.json is not one of iNaturalist's annotation files: no images with file_name",
    ),
    "no store": (("store", "ls", "--store", "absent"), "there is no store at "),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_typed(typed: Typed, arguments: tuple[str, ...], message: str) -> None:
    assert message in typed(*arguments)
    assert Path("pipe").is_fifo()  # as /dev/null is a device, which root could replace


SURROUNDINGS: dict[str, tuple[dict[str, str], str]] = {
    "BTM_HOME is a file": (
        {"BTM_HOME": "a text"},
        "BTM_HOME a text cannot be used as a folder: File exists; choose another",
    ),
    "BTM_HOME is a file, and nothing is written": (
        {"BTM_HOME": "a text", "COMMAND": "plan"},
        "BTM_HOME a text cannot be used as a folder: it is a file; choose another, or unset it",
    ),
    "too many GPUs": (
        {"BTM_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"},
        "BTM_GPUS asks for 2 GPUs, 1 can be seen here; lower it",
    ),
    "nonsense": (
        {"BTM_STORE_DEADLINE_SECONDS": "soon"},
        "store settings: BTM_STORE_DEADLINE_SECONDS: Input should be a",
    ),
    "an engine that is nearly one": (
        {"BTM_ENGINE": "workpol"},
        "settings: BTM_ENGINE: expected 'local', 'ray' or 'workpool', found 'workpol'; did you mean 'workpool'?",
    ),
    "what nonsense": (
        {"BTM_STORE_PARALLEL": "0"},
        "BTM_STORE_PARALLEL: Input should be greater than or equal to 1, found '0'",
    ),
    "no scheme": (
        {
            "BTM_STORE": "s3://b/x",
            "AWS_ENDPOINT_URL_S3": "host:9",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        },
        "Invalid endpoint: host:9; AWS_ENDPOINT_URL_S3 (or BTM_STORE_ENDPOINT) has to be a URL, such as http://HOST:PORT",
    ),
    "no profile": (
        {"BTM_STORE": "s3://b/x", "AWS_PROFILE": "nobody"},
        "The config profile (nobody) could not be found; check AWS_PROFILE, AWS_REGION and the BTM_STORE_ settings",
    ),
    "no slash": (
        {"BTM_STORE": "s3:/b/x"},
        "the store's URL has one slash too few: use s3://bucket/prefix, or file:///",
    ),
}


@pytest.mark.parametrize(("environment", "message"), SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_where_it_is_typed(typed: Typed, environment: dict[str, str], message: str) -> None:
    assert message in typed(environment.get("COMMAND", "run"), "my.yaml", **environment)


@pytest.mark.parametrize(("name", "why"), [("binary", "file is not a database"), ("images", "unable to open database")])
def test_a_database_of_mlflow_that_is_none(typed: Typed, name: str, why: str) -> None:
    """MLflow would try for minutes."""
    message = typed("promote", "--show", "--model=birds", MLFLOW_TRACKING_URI=f"sqlite:///{name}")
    assert f"MLflow's registry at sqlite:///{name} cannot be used: {why}" in message
    assert "; check MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_USERNAME" in message


@pytest.mark.parametrize(
    ("visible", "shown"), [("0,1", "2: 0,1"), ("5", "1: 5"), ("", "0: none"), ("-1", "0: none"), ("3,-1,4", "1: 3")]
)
def test_more_gpus_than_are_visible_to_this_process(monkeypatch: pytest.MonkeyPatch, visible: str, shown: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=f"BTM_GPUS asks for 3 GPUs, CUDA_VISIBLE_DEVICES shows {shown}$"):
        RuntimeSettings(gpus=3).slots()


def test_servers_that_are_away(btm: Btm, things: Path) -> None:
    """In processes of their own: Prefect reads its settings when it is imported."""
    for options, environment, parts in (
        ([], {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, [
            "the Prefect server at http://127.0.0.1:9/api (PREFECT_API_URL) cannot be reached: ",
            "; is it up, and is its URL of the form http://HOST:4200/api? Unset PREFECT_API_URL to have one of btm",
        ]),
        (["--engine=workpool"], {}, ["engine workpool needs a Prefect server with workers: set PREFECT_API_URL"]),
    ):  # fmt: skip
        done = btm("run", "my.yaml", *options, cwd=things, **environment)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
        for part in parts:
            assert part in done.stderr
