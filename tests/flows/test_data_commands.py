"""`btm data inspect` and `btm data prepare`, as a user types them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Btm, small_experiment, write_digits, write_lists
from PIL import Image


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with images, lists and my.yaml; a training image is unreadable, another one is in test, too."""
    root = write_digits(tmp_path / "images")
    write_lists(root)
    experiment = small_experiment(format="list", root="images", train="train.txt", test="test.txt")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def damage(own: Path) -> None:
    first, second, *_ = sorted((own / "images/train/digit-0").iterdir())
    first.write_bytes(b"no image")
    Image.open(next((own / "images/test/digit-1").iterdir())).save(second, "BMP")


def test_inspect_reports_and_plots(btm: Btm, own: Path) -> None:
    damage(own)
    done = btm("data", "inspect", "my.yaml", "--plot", "tail.svg", "--write-clean", "clean", cwd=own)
    assert done.returncode == 0, done.stderr
    assert "digit-0 ███" in done.stdout and "\x1b" not in done.stdout
    assert "! 1 image is unreadable\n    train.txt:1 train/digit-0/0000.png (digit-0): no image of a" in done.stdout
    assert "! 1 picture is in two splits" in done.stdout and "! 1 picture is there under more than one" in done.stdout
    assert (
        "Left out: 2 of train, 0 of test. Use the lists with data.format=list, data.train=clean/train.txt"
        in done.stdout
    )
    assert "<svg" in (own / "tail.svg").read_text()
    assert not (own / ".btm/prefect").exists()
    assert btm("data", "inspect", "my.yaml", "--strict", cwd=own).returncode == 1
    clean = ["--set=data.train=clean/train.txt", "--set=data.test=clean/test.txt"]
    done = btm("data", "inspect", "my.yaml", "--strict", *clean, cwd=own)
    assert done.returncode == 0, done.stdout
    before = (own / "images/train.txt").read_text()
    done = btm("data", "inspect", "my.yaml", "--write-clean", "images", cwd=own)
    assert done.returncode == 2 and "images/train.txt is there already; choose another folder" in done.stderr
    assert (own / "images/train.txt").read_text() == before
    done = btm("data", "inspect", "my.yaml", "--write-clean", "/proc/clean", cwd=own)
    cure = "/proc/clean cannot be written to: No such file or directory; choose another folder"
    assert done.returncode == 2 and cure in done.stderr


def test_inspect_takes_data_as_they_are(btm: Btm, own: Path) -> None:
    damage(own)
    done = btm("data", "inspect", "images", "--json", cwd=own, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [finding["kind"] for finding in document["findings"] if finding["serious"]] == [
        "unreadable",
        "leaks",
        "labels",
    ]
    assert {"name", "root", "classes", "splits", "per_class", "images", "findings"} <= set(document)
    done = btm("data", "inspect", "images/train", "--no-images", cwd=own, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii()
    assert "the test split holds no image" in done.stdout and "`btm init DATA` makes a test split" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent does not exist; expected a folder with train/CLASS"),
        (["digits"], "Did you mean the preset 'digits-lt'?"),
        (["my.yaml", "--plot", "tail.jpeg"], "--plot tail.jpeg: name a .png or .svg file"),
        (["digits-lt", "--write-clean", "clean"], "lists of image files"),
        (["my.yaml", "--set", "data.train=absent.txt"], "absent.txt does not exist"),
    ],
)
def test_what_inspect_refuses(btm: Btm, own: Path, arguments: list[str], message: str) -> None:
    done = btm("data", "inspect", *arguments, cwd=own)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr


def test_prepare_tells_what_changed(btm: Btm, own: Path) -> None:
    def prepare(*options: str) -> tuple[int, str]:
        done = btm("data", "prepare", "my.yaml", *options, cwd=own)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    code, text = prepare()
    assert code == 0 and "(written)" in text and "33 images in 3 classes, 20 to 5 a class" in text
    manifest = json.loads((own / ".btm/prepared/my.json").read_text())
    assert manifest["splits"]["train"]["counts"] == [20, 8, 5]
    assert len(manifest["files"]) == 51 and all(size > 0 and len(sha) == 64 for size, sha in manifest["files"].values())
    assert "(unchanged since " in prepare()[1]
    image = sorted((own / "images/train/digit-1").iterdir())[0]
    Image.new("L", (8, 8), 7).save(image)
    code, text = prepare()
    assert code == 2
    assert f"files with other content: 1 (train/digit-1/{image.name})" in text
    assert "train: 33 images before, 33 now" in text and "test:" not in text
    assert "the data are not as they were on " in text and "take them as they are now with --accept" in text
    assert "written anew" in prepare("--accept")[1]
    assert "(unchanged since " in prepare()[1]
    (own / ".btm/prepared/my.json").write_text("{}")
    assert "is no manifest of a data set" in prepare()[1]


def test_the_hash_of_a_split_is_that_of_the_report(btm: Btm, own: Path) -> None:
    from btm_core.config import load_experiment
    from tasks.data import prepare_data

    document = json.loads(btm("data", "prepare", "my.yaml", "--json", cwd=own).stdout)
    step = prepare_data("my", load_experiment(own / "my.yaml").data, None)
    assert {name: split["hash"] for name, split in document["splits"].items()} == step.hashes
    assert document["state"] == "new" and "files" not in document


def test_prepare_says_what_a_published_set_lacks(btm: Btm, tmp_path: Path) -> None:
    done = btm("data", "prepare", "imagenet-lt", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "ImageNet-LT is not complete in data/imagenet" in done.stderr
    assert "https://www.image-net.org/download.php" in done.stderr
    assert not (tmp_path / ".btm/prepared").exists()


def test_prepare_reads_the_official_cifar100(btm: Btm, cifar100: Path, tmp_path: Path) -> None:
    done = btm("data", "prepare", "cifar100-lt", "--set", f"data.root={cifar100}", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["profile"] | {"images": 10847, "largest": 500, "smallest": 5} == document["profile"]
    shutil.copytree(cifar100, tmp_path / "damaged")
    with next((tmp_path / "damaged").rglob("train.bin")).open("r+b") as file:
        file.write(b"\xff")
    done = btm("data", "prepare", "cifar100-lt", "--set=data.root=damaged", cwd=tmp_path)
    assert done.returncode == 2 and "is not the official file" in done.stderr


def test_the_guide_shows_every_command_and_option() -> None:
    import typer

    from flows.cli import app
    from flows.data.commands import data_app

    guide = (Path(__file__).parents[2] / "docs/data.md").read_text()
    commands = {"init": typer.main.get_command(app).commands["init"]}  # type: ignore[attr-defined]
    commands |= {f"data {name}": one for name, one in typer.main.get_command(data_app).commands.items()}  # type: ignore[attr-defined]
    for name, command in commands.items():
        section = guide.partition(f"\n## `btm {name}`\n")[2].partition("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in section and option not in ("--images",)] == [], name


def test_names_that_anybody_may_have_given_do_no_harm(btm: Btm, tmp_path: Path) -> None:
    """Escape sequences, letters that are none, and letters that the terminal lacks."""
    root = write_digits(tmp_path / "images")
    for old, new in (("digit-0", "\x1b[31mred"), ("digit-1", "\udcff"), ("digit-2", "鳥")):
        for split in ("train", "test"):
            (root / split / old).rename(root / split / new)
    sorted((root / "train/鳥").iterdir())[0].write_bytes(b"")
    for encoding in ("utf-8", "ascii"):
        done = btm("data", "inspect", "images", cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout and "?[31mred" in done.stdout
    assert json.loads(btm("data", "inspect", "images", "--json", cwd=tmp_path).stdout)["classes"] == 3
    for arguments in (["data", "inspect", "images", "--write-clean", "clean"], ["init", "images/train"]):
        done = btm(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "is no path of a file" in done.stderr
