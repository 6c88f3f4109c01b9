"""Images in object storage, on a real S3 server: fetched once, for just who needs them, verified at every use."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_experiment, write_digits, write_lists
from PIL import Image

from btm_core.config import ExperimentConfig
from btm_core.data import scan
from btm_core.data.files import content_digests, pack_files, stat_files
from btm_core.data.images import ImageFiles
from btm_core.data.reader import Fetching, ImageReader
from btm_core.errors import BTMError, DataError
from btm_core.storage import Artifact, Store, open_filesystem, read_bytes, storage_settings
from btm_core.storage.cache import FileCache
from tasks.data import prepare_data
from tasks.evaluate import Evaluate
from tasks.finetune import Finetune
from tasks.pretrain import Pretrain
from tasks.sample import SampleSubset
from tasks.step import Step, perform

CROPS = {"size": 8, "channels": 1, "mean": [0.3], "std": [0.4], "augmentation": "random-resized-crop", "resize": 8}


@pytest.fixture
def bucket(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty folder on S3."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield f"s3://btm/{tmp_path.name}"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    root = write_digits(tmp_path / "images", train=(30, 12, 9), test=6)
    write_lists(root)
    for split in ("train", "test"):
        lines = [line.split() for line in (root / f"{split}.txt").read_text().splitlines()]
        table = pd.DataFrame(lines, columns=["path", "label"]).astype({"label": int})
        table.to_csv(root / f"{split}.csv", index=False)
        table.to_parquet(root / f"{split}.parquet")
    return root


@pytest.fixture
def remote(local: Path, bucket: str) -> str:
    """The same images on S3."""
    fs, root = open_filesystem(bucket)
    files = {f"{root}/{path.relative_to(local)}": path.read_bytes() for path in local.rglob("*") if path.is_file()}
    fs.pipe(files)
    return bucket


def experiment(root: str, **data: Any) -> ExperimentConfig:
    given = {"format": "list", "root": root, "train": "train.txt", "test": "test.txt", "input": CROPS}
    return ExperimentConfig.model_validate(small_experiment(**(given | data)))


def fetched() -> set[str]:
    """Return the digests in this test's cache."""
    return {path.name for path in FileCache.of(storage_settings()).folder.glob("files/*/*")}


def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BTM_STORE_CACHE", str(tmp_path / "another-cache"))


class Run:
    """The steps of Algorithm 1 up to a fine-tune and its evaluation, in this process."""

    def __init__(self, config: ExperimentConfig, folder: Path):
        self.config, self.store = config, Store(str(folder))
        self.news: list[dict[str, Any]] = []
        self.data = self.do(prepare_data("own", config.data, folder / "digests"))

    def do(self, step: Step) -> Artifact:
        return perform(step, self.store, lambda event: self.news.append({"of": step.address, **event}))

    @property
    def shared(self) -> dict[str, Any]:
        config = self.config
        return {
            "data": self.data,
            "view": config.data.input,
            "model": config.model,
            "seed": 0,
            "root": config.data.root,
        }

    def pretrained(self) -> Artifact:
        return self.do(Pretrain(config=self.config.pretrain, **self.shared))

    def subset(self) -> Artifact:
        return self.do(SampleSubset.all(self.data, self.config.sampling, 0)[0])

    def finetune(self, base: Artifact, subset: Artifact, epochs: int = 2) -> Finetune:
        config = self.config.finetune.model_copy(update={"epochs": epochs})
        return Finetune(base=base, subset=subset, index=0, config=config, **self.shared)

    def evaluate(self, model: Artifact) -> Evaluate:
        return Evaluate(data=self.data, view=self.config.data.input, model=model, root=self.config.data.root)

    def everything(self) -> list[Artifact]:
        base, subset = self.pretrained(), self.subset()
        model = self.do(self.finetune(base, subset))
        return [self.data, base, subset, model, self.do(self.evaluate(model))]

    def subset_images(self, subset: Artifact) -> set[str]:
        """Return the digests of a subset's images."""
        paths = scan(self.config.data).train.paths
        assert paths is not None and self.config.data.root is not None
        chosen = [paths[i] for i in self.store.read_json(subset, "subset.json")["positions"]]
        return set(content_digests(self.config.data.root, chosen, None))


def requests_of(monkeypatch: pytest.MonkeyPatch, root: str) -> list[str]:
    """Return a list that fills with the files asked for."""
    fs, _ = open_filesystem(root)
    asked: list[str] = []
    ask = fs._cat_file

    async def counting(path: str, **options: Any) -> bytes:
        asked.append(path)
        data: bytes = await ask(path, **options)
        return data

    monkeypatch.setattr(fs, "_cat_file", counting)
    return asked


@pytest.mark.parametrize(
    "how",
    [
        {"format": "list"},
        {"format": "csv", "train": "train.csv", "test": "test.csv"},
        {"format": "parquet", "train": "train.parquet", "test": "test.parquet"},
        {"format": "image_folder", "train": None, "test": None},
    ],
    ids=lambda how: how["format"],
)
def test_data_are_read_from_s3_as_from_a_folder(local: Path, remote: str, how: dict[str, Any]) -> None:
    here, there = (prepare_data("own", experiment(root, **how).data, None) for root in (str(local), remote))
    assert here.address == there.address
    assert here.hashes == there.hashes


@pytest.mark.parametrize("augmentation", ["random-resized-crop", "crop"])
@pytest.mark.parametrize("cache_gb", ["1", "0"])
def test_a_run_from_s3_has_the_bits_of_one_from_a_folder(
    local: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str, cache_gb: str
) -> None:
    monkeypatch.setenv("BTM_STORE_CACHE_GB", cache_gb)
    view = {**CROPS, "augmentation": augmentation}
    here = Run(experiment(str(local), input=view), tmp_path / "here").everything()
    there = Run(experiment(remote, input=view), tmp_path / "there").everything()
    assert here == there


def test_every_image_travels_once(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For digests, decoding, two trainings of several epochs each, and an evaluation."""
    config = experiment(remote)
    scanned = scan(config.data)
    asked = requests_of(monkeypatch, remote)
    Run(config, tmp_path / "store").everything()
    images = [path for path in asked if path.endswith(".png")]
    assert len(images) == len(set(images)) == len(scanned.train) + len(scanned.test)


def test_a_finetune_fetches_its_own_images_up_front_and_says_so(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(experiment(remote), tmp_path / "store")
    base, subset = run.pretrained(), run.subset()
    wanted = run.subset_images(subset)
    empty_cache(monkeypatch, tmp_path)
    run.news.clear()
    run.do(run.finetune(base, subset))
    assert fetched() == wanted
    kinds = [event["event"] for event in run.news]
    assert kinds == ["fetch", "epoch", "epoch"]
    first = run.news[0]
    assert first["images"] == len(wanted) == first["of"]
    assert first["megabytes"] > 0 < first["seconds"]
    fs, root = open_filesystem(remote)
    fs.rm(f"{root}/train", recursive=True)
    run.news.clear()
    run.do(run.finetune(base, subset, epochs=3))  # S3 is not asked again
    assert [event["event"] for event in run.news] == ["epoch"] * 3


@pytest.mark.parametrize("where", ["s3", "folder"])
def test_an_image_that_changed_behind_our_back_is_refused(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue("remote") if where == "s3" else str(local)
    run = Run(experiment(root), tmp_path / "store")
    base, subset = run.pretrained(), run.subset()
    fs, base_path = open_filesystem(root)
    [victim, other] = sorted(fs.glob(f"{base_path}/test/digit-1/*.png"))[:2]
    fs.pipe_file(victim, fs.cat_file(other))
    empty_cache(monkeypatch, tmp_path)
    model = run.do(run.finetune(base, subset))  # does not use it
    with pytest.raises(DataError, match=r"(?s)1 of the images below .* it has changed") as error:
        run.do(run.evaluate(model))
    assert root in str(error.value)
    assert victim.removeprefix(f"{base_path}/") in str(error.value)
    assert prepare_data("own", run.config.data, tmp_path / "store" / "digests").address != run.data.address


def test_data_that_change_while_they_are_read_are_refused(remote: str, tmp_path: Path) -> None:
    step = prepare_data("own", experiment(remote).data, None)
    fs, root = open_filesystem(remote)
    victim = fs.glob(f"{root}/train/digit-1/*.png")[0]
    fs.pipe_file(victim, fs.cat_file(victim) + b"more")
    with pytest.raises(DataError, match="changed while they were read"):
        perform(step, Store(str(tmp_path / "store")), lambda event: None)


def test_images_that_are_gone_are_named(remote: str, local: Path) -> None:
    paths = [str(path.relative_to(local)) for path in sorted(local.glob("train/digit-0/*.png"))]
    fs, root = open_filesystem(remote)
    for path in paths[:2]:
        fs.rm_file(f"{root}/{path}")
    for read in (ImageReader(remote).read, lambda paths: list(ImageReader(remote).digests(paths))):
        with pytest.raises(DataError, match=f"2 of the images below {remote} cannot be used") as error:
            read(paths)
        assert all(f"{path}: it is gone" in str(error.value) for path in paths[:2])


def test_what_cannot_be_reached_is_one_clear_error(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(root: str) -> str:
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(DataError) as error:
            scan(experiment(root).data)
        with pytest.raises(BTMError) as other:
            ImageReader(root).read([f"train/{i}.png" for i in range(100)])
        assert root in str(error.value) and root in str(other.value)
        return f"{error.value}\n{other.value}"

    assert "does not exist" in refused("s3://mistyped/images")
    monkeypatch.setenv("BTM_STORE_DEADLINE_SECONDS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert "has not answered" in refused(remote)


def test_wrong_credentials_are_one_clear_error(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(DataError, match=f"data.root {remote} cannot be reached"):
        scan(experiment(remote).data)
    with pytest.raises(DataError, match=f"image a.png below {remote} cannot be read"):
        ImageReader(remote).read(["a.png"])
    with pytest.raises(DataError, match=f"the images below {remote} cannot be listed: .*check AWS_ACCESS_KEY_ID"):
        stat_files(remote, ["a.png"])


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_names_of_any_kind(scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("bucket") if scheme == "s3" else f"memory://{tmp_path.name}"
    names = ["a b.png", "ü.png", "[1].png", "x?.png", "*.png", "#1 50%25.png", "deep/er/1.png"]
    fs, base = open_filesystem(root)
    for name in names:
        fs.pipe_file(f"{base}/{name}", name.encode())
    reader = ImageReader(root)
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    assert list(reader.digests(names)) == digests
    assert reader.read(names, digests) == [name.encode() for name in names]
    assert read_bytes(f"{root}/{names[0]}") == names[0].encode()
    assert fetched() == set(digests)


def test_many_images_come_in_order_and_their_number_is_told(bucket: str) -> None:
    fs, base = open_filesystem(bucket)
    names = [f"{number:04d}" for number in range(600)]
    fs.pipe({f"{base}/{name}": name.encode() * 100 for name in names})
    told: list[Fetching] = []
    reader = ImageReader(bucket)
    digests = list(reader.digests(names, told.append))
    assert digests == [hashlib.sha256(name.encode() * 100).hexdigest() for name in names]
    assert (told[-1].images, told[-1].of, told[-1].megabytes) == (600, 600, 0.24)
    told.clear()
    reader.bring_near(names, digests, told.append)
    assert told == []  # all are here
    assert b"".join(b"".join(chunk) for chunk in reader.stream(names, digests)) == b"".join(
        name.encode() * 100 for name in names
    )


def test_undecodable_remote_images_are_named(remote: str, local: Path) -> None:
    fs, root = open_filesystem(remote)
    paths = [str(path.relative_to(local)) for path in sorted(local.glob("train/digit-0/*.png"))]
    fs.pipe_file(f"{root}/{paths[3]}", b"no image")
    with pytest.raises(DataError, match=f"1 of 30 images below {remote} cannot be decoded") as error:
        pack_files(remote, paths, 8, 1)
    assert paths[3] in str(error.value)


def test_what_rotted_in_the_cache_is_fetched_again(bucket: str) -> None:
    fs, base = open_filesystem(bucket)
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(file, "png")
    fs.pipe_file(f"{base}/a.png", file.getvalue())
    digest = hashlib.sha256(file.getvalue())
    digests = np.frombuffer(digest.digest(), np.uint8).reshape(1, 32)
    images = ImageFiles(bucket, ["a.png"], digests)
    images.bring_near(lambda fetching: None)
    cached = FileCache.of(storage_settings()).folder / "files" / digest.hexdigest()[:2] / digest.hexdigest()
    cached.unlink()
    cached.write_bytes(file.getvalue()[:-1])
    view = experiment(bucket).data.input
    assert torch.equal(images.batch(view, None), torch.full((1, 1, 8, 8), 200, dtype=torch.uint8))
    assert cached.read_bytes() == file.getvalue()
