import io
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_INPUT, write_digits, write_lists
from PIL import Image, ImageOps

from btm_core.config import DataConfig, InputConfig
from btm_core.data import cifar as cifar_module
from btm_core.data import scan
from btm_core.data.dataset import LabelledImages
from btm_core.data.files import content_digests, decode_image, fit_square, pack_files, pack_pixels, stat_files
from btm_core.data.images import ImageFiles, PackedPixels
from btm_core.data.readers import _digits_table
from btm_core.data.transforms import augment, normalise, random_resized_boxes
from btm_core.errors import DataError
from btm_core.seeding import torch_generator


def config(**values: object) -> DataConfig:
    return DataConfig.model_validate({"input": SMALL_INPUT, **values})


# Readers


@pytest.fixture(params=["image_folder", "list", "csv", "csv-names", "parquet"])
def layout(request: pytest.FixtureRequest, digit_images: Path) -> DataConfig:
    """The same digits described in each format."""
    name = request.param
    if name == "image_folder":
        return config(format=name, root=str(digit_images))
    write_lists(digit_images)
    if name == "list":
        return config(format=name, root=str(digit_images), train="train.txt", test="test.txt")
    for split in ("train", "test"):
        rows = [line.split() for line in (digit_images / f"{split}.txt").read_text().splitlines()]
        table = pd.DataFrame({"file": [path for path, _ in rows], "class": [int(label) for _, label in rows]})
        if name == "csv-names":
            table["class"] = [f"digit-{label}" for label in table["class"]]
        if name == "parquet":
            table.to_parquet(digit_images / f"{split}.parquet")
        else:
            table.to_csv(digit_images / f"{split}.csv", index=False)
    kind = name.partition("-")[0]
    return config(
        format=kind, root=str(digit_images), train=f"train.{kind}", test=f"test.{kind}",
        path_column="file", label_column="class",
    )  # fmt: skip


def test_all_formats_read_the_same_data_set(layout: DataConfig) -> None:
    catalog = scan(layout)
    assert catalog.class_names == ("digit-0", "digit-1", "digit-2")
    assert catalog.train_counts.tolist() == [20, 8, 5]
    assert len(catalog.test) == 18
    assert catalog.train.paths is not None
    found = {path: label for path, label in zip(catalog.train.paths, catalog.train.labels.tolist(), strict=True)}
    assert all(path.startswith(f"train/digit-{label}/") for path, label in found.items())
    assert len(found) == 33


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits, table = load_digits(), _digits_table()
    assert (table[:, :-1] == digits.data).all() and (table[:, -1] == digits.target).all()


def test_digits_are_split_by_class_and_seed() -> None:
    splits = [scan(config(format="digits", imbalance_factor=50, split_seed=seed)) for seed in (0, 0, 1)]
    first = splits[0]
    assert np.bincount(first.test.labels).tolist() == [60] * 10
    counts = first.train_counts
    assert counts[0] / counts[-1] > 40
    assert (np.diff(counts) <= 0).all()
    assert (splits[1].train.pixels == first.train.pixels).all()
    assert splits[2].test.pixels is not None
    assert (splits[2].test.pixels != first.test.pixels).any()


def test_cifar100_is_read_from_the_binary_layout(cifar100: Path) -> None:
    settings = {**SMALL_INPUT, "size": 32, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    for root in (cifar100, cifar100 / "cifar-100-binary"):
        catalog = scan(
            DataConfig(format="cifar100", root=str(root), imbalance_factor=100, input=settings, download=False)
        )
        assert len(catalog.train) == 10_847
        assert len(catalog.test) == 10_000
        assert catalog.class_names[:2] == ("apple", "aquarium_fish")
        assert catalog.train.pixels is not None
        assert catalog.train.pixels.shape == (10_847, 3, 32, 32)


def test_cifar100_python_layout_gives_what_the_binary_layout_does(
    cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout is rebuilt from the binary one, so its md5 differs from the official files' and is replaced here."""
    import hashlib
    import pickle

    binary = cifar_module.read_cifar100(cifar100, download=False)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    md5 = {}
    for split in (binary.train, binary.test):
        assert split.pixels is not None
        batch = {b"data": split.pixels.reshape(len(split), -1), b"fine_labels": split.labels.tolist()}
        data = pickle.dumps(batch, protocol=3)
        (folder / split.name).write_bytes(data)
        md5[split.name] = hashlib.md5(data).hexdigest()
    meta = pickle.dumps({b"fine_label_names": [name.encode() for name in binary.class_names]}, protocol=3)
    (folder / "meta").write_bytes(meta)
    with pytest.raises(DataError, match="not the official file"):
        cifar_module.read_cifar100(tmp_path, download=False)
    monkeypatch.setattr(cifar_module, "PYTHON_MD5", md5)
    monkeypatch.setattr(cifar_module, "META_MD5", hashlib.md5(meta).hexdigest())
    python = cifar_module.read_cifar100(tmp_path, download=False)
    assert python.class_names == binary.class_names
    assert (python.train.labels == binary.train.labels).all()
    assert (python.test.pixels == binary.test.pixels).all()


def test_cifar100_is_downloaded_with_its_md5_checked(
    cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a real HTTP server on this machine, with the real files; only address and archive md5 are the test's own."""
    import hashlib
    import tarfile

    served = tmp_path / "served"
    served.mkdir()
    archive = served / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(cifar100 / "cifar-100-binary", "cifar-100-binary")
    handler = partial(_Silent, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar_module, "URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        with pytest.raises(DataError, match=r"gave a file with md5 .*, expected .*; it was deleted"):
            cifar_module.read_cifar100(tmp_path / "root", download=True)
        assert not list((tmp_path / "root").iterdir())  # nothing wrong is left behind
        monkeypatch.setattr(cifar_module, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        catalog = cifar_module.read_cifar100(tmp_path / "root", download=True)
        monkeypatch.setattr(cifar_module, "URL", f"http://127.0.0.1:{server.server_port}/absent")
        with pytest.raises(DataError, match="could not be fetched"):
            cifar_module.read_cifar100(tmp_path / "other", download=True)
        server.shutdown()
    assert len(catalog.train) == 50_000


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


# Bad input: one clear message


def lists(root: Path, train: str | None = None, test: str | None = None) -> DataConfig:
    write_lists(root)
    for name, text in (("train", train), ("test", test)):
        if text is not None:
            (root / f"{name}.txt").write_text(text)
    return config(format="list", root=str(root), train="train.txt", test="test.txt")


def refused(settings: DataConfig) -> str:
    with pytest.raises(DataError) as error:
        scan(settings)
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/absent does not exist" in refused(config(format="image_folder", root=f"{tmp_path}/absent"))


@pytest.mark.parametrize("line", ["no-label.png", "a.png x", "a.png -1", "a.png 1.5"])
def test_a_line_that_does_not_parse_is_named(digit_images: Path, line: str) -> None:
    text = f"train/digit-0/0000.png 0\n{line}\n"
    message = refused(lists(digit_images, train=text))
    assert "train.txt, line 2" in message
    assert line in message


def test_a_list_that_is_not_text_is_named(digit_images: Path) -> None:
    settings = lists(digit_images)
    (digit_images / "train.txt").write_bytes(b"ok.png 0\n\xff\xfe\x00 1\n")
    assert "train.txt, line 2: not UTF-8" in refused(settings)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "train/../../x.png", "..", "s3://other/x.png"])
def test_a_path_out_of_the_root_is_refused(digit_images: Path, path: str) -> None:
    assert "leaves data.root" in refused(lists(digit_images, train=f"{path} 0\n"))


def test_one_image_under_two_names_is_refused(digit_images: Path, tmp_path: Path) -> None:
    from tasks.data import prepare_data

    source = sorted((digit_images / "train/digit-0").iterdir())[0]
    (digit_images / "test/digit-0/copy.png").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=f"test/digit-0/copy.png is train image train/digit-0/{source.name}"):
        prepare_data("x", config(format="image_folder", root=str(digit_images)), tmp_path / "cache")


def test_an_image_with_two_labels_is_refused(digit_images: Path) -> None:
    settings = lists(digit_images)
    first = (digit_images / "train.txt").read_text().splitlines()[0]
    with (digit_images / "train.txt").open("a") as file:
        file.write(first[:-1] + "1\n")
    assert "listed with two labels, 0 and 1" in refused(settings)


@pytest.mark.parametrize("test", ["train", "train/", "./train"])
def test_the_training_folder_is_no_test_folder(digit_images: Path, test: str) -> None:
    assert "33 images are in both" in refused(config(format="image_folder", root=str(digit_images), test=test))


def test_linked_class_folders_are_read_and_empty_ones_named(digit_images: Path) -> None:
    folder = digit_images / "train" / "digit-2"
    folder.rename(digit_images / "elsewhere")
    folder.symlink_to(digit_images / "elsewhere")
    settings = config(format="image_folder", root=str(digit_images))
    assert scan(settings).train_counts.tolist() == [20, 8, 5]
    (digit_images / "train" / "digit-3").mkdir()
    message = refused(settings)
    assert "no training image" in message
    assert "digit-3" in message


def test_class_names_decide_the_order(digit_images: Path) -> None:
    (digit_images / "names.txt").write_text("digit-2\ndigit-0\ndigit-1\n")
    names = str(digit_images / "names.txt")
    catalog = scan(config(format="image_folder", root=str(digit_images), class_names=names))
    assert catalog.train_counts.tolist() == [5, 20, 8]
    write_lists(digit_images)
    for split in ("train", "test"):
        rows = [line.split() for line in (digit_images / f"{split}.txt").read_text().splitlines()]
        table = pd.DataFrame({"path": [path for path, _ in rows], "label": [f"digit-{label}" for _, label in rows]})
        table.to_csv(digit_images / f"{split}.csv", index=False)
    files = {"train": "train.csv", "test": "test.csv", "class_names": names}
    table_catalog = scan(config(format="csv", root=str(digit_images), **files))
    assert table_catalog.class_names == catalog.class_names
    assert table_catalog.train_counts.tolist() == [5, 20, 8]
    (digit_images / "names.txt").write_text("digit-2\ndigit-0\n")
    assert "not in data.class_names" in refused(config(format="csv", root=str(digit_images), **files))
    assert "not in data.class_names" in refused(
        config(format="image_folder", root=str(digit_images), class_names=names)
    )


def test_whole_floats_are_labels_and_others_are_refused(digit_images: Path) -> None:
    settings = lists(digit_images)
    for split in ("train", "test"):
        rows = [line.split() for line in (digit_images / f"{split}.txt").read_text().splitlines()]
        table = pd.DataFrame({"path": [path for path, _ in rows], "label": [float(label) for _, label in rows]})
        table.to_csv(digit_images / f"{split}.csv", index=False)
    settings = config(format="csv", root=str(digit_images), train="train.csv", test="test.csv")
    assert scan(settings).train_counts.tolist() == [20, 8, 5]
    text = (digit_images / "train.csv").read_text()
    (digit_images / "train.csv").write_text(text.replace(",2.0", ",2.5", 1))
    assert "label 2.5 is no whole number" in refused(settings)


def test_lists_with_marks_blank_lines_and_huge_labels(digit_images: Path) -> None:
    settings = lists(digit_images)
    good = (digit_images / "train.txt").read_text()
    (digit_images / "train.txt").write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert scan(settings).train_counts.tolist() == [20, 8, 5]
    assert "line 36: '../x.png' leaves" in refused(lists(digit_images, train=f"\n\n{good}../x.png 0\n"))
    path = good.split()[0]
    assert "label 300000000" in refused(lists(digit_images, train=f"{good}{path} 300000000\n"))
    assert "expected 'path label'" in refused(lists(digit_images, train=f"{good}{path} {10**22}\n"))
    assert "train split holds no image" in refused(
        lists(digit_images, train="").model_copy(update={"imbalance_factor": 10.0})
    )


def test_one_class_is_refused(digit_images: Path) -> None:
    text = "train/digit-0/0000.png 0\n"
    assert "expected at least 2" in refused(lists(digit_images, train=text, test="test/digit-0/0208.png 0\n"))


def test_classes_without_images_are_named(digit_images: Path) -> None:
    settings = lists(digit_images)
    whole = (digit_images / "train.txt").read_text()
    gap = "".join(line + "\n" for line in whole.splitlines() if not line.endswith(" 1"))
    message = refused(lists(digit_images, train=gap))
    assert "1 of 3 classes have no training image" in message
    assert "1 (" in message
    test = "".join(line + "\n" for line in (digit_images / "test.txt").read_text().splitlines() if line[-1] != "0")
    assert "no test image" in refused(lists(digit_images, train=whole, test=test))
    assert settings.format == "list"


def test_a_label_out_of_range_is_named(digit_images: Path) -> None:
    settings = lists(digit_images)
    file = digit_images / "test.txt"
    file.write_text(file.read_text().replace(" 2\n", " 7\n", 1))
    message = refused(settings)
    assert "the first is 7" in message
    assert "0..2" in message


def test_missing_images_are_counted_and_the_first_ten_named(digit_images: Path) -> None:
    settings = lists(digit_images)
    removed = sorted((digit_images / "train" / "digit-0").iterdir())[:12]
    for path in removed:
        path.unlink()
    message = refused(settings)
    assert "12 of 51 listed images are missing" in message
    assert sum(path.name in message for path in removed) == 10
    assert "and 2 more" in message


def test_an_image_in_both_splits_is_refused(digit_images: Path) -> None:
    settings = lists(digit_images)
    shared = (digit_images / "train.txt").read_text().splitlines()[0]
    with (digit_images / "test.txt").open("a") as file:
        file.write(shared.replace("train/", "test/../train/") + "\n")  # the same file by another spelling
    assert "1 images are in both" in refused(settings)


def test_undecodable_and_truncated_images_are_named(digit_images: Path) -> None:
    folder = digit_images / "train" / "digit-0"
    first, second = sorted(folder.iterdir())[:2]
    first.write_bytes(b"not an image")
    second.write_bytes(second.read_bytes()[:60])
    paths = [str(path.relative_to(digit_images)) for path in sorted(folder.iterdir())]
    with pytest.raises(DataError, match="2 of 20 images") as error:
        pack_files(str(digit_images), paths, None, 1)
    assert first.name in str(error.value)
    assert second.name in str(error.value)


def test_class_names_and_columns_are_checked(digit_images: Path) -> None:
    write_lists(digit_images)
    pd.DataFrame({"path": ["a"], "labels": [0]}).to_csv(digit_images / "t.csv", index=False)
    message = refused(config(format="csv", root=str(digit_images), train="t.csv", test="t.csv"))
    assert "has no column 'label', it has 'path', 'labels'; set data.path_column and data.label_column" in message
    assert "does not exist" in refused(config(format="csv", root=str(digit_images), train="absent.csv", test="t.csv"))
    pd.DataFrame({"path": ["a", None], "label": [0, 1]}).to_csv(digit_images / "u.csv", index=False)
    assert "row 2" in refused(config(format="csv", root=str(digit_images), train="u.csv", test="u.csv"))


# Decoding


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture, wider than high, that no rotation leaves as it is."""
    y, x = np.mgrid[:24, :40]
    return Image.fromarray(np.stack([x * 6, y * 10, (x + y) * 4], 2).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "1", "I;16", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_decodes(picture: Image.Image, mode: str, channels: int) -> None:
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        data, expected = encoded(Image.fromarray(grey), "PNG"), picture.convert("L")
    else:
        data = encoded(picture.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
        expected = picture.convert(mode)
    decoded = decode_image(data, channels)
    assert decoded.mode == ("L" if channels == 1 else "RGB")
    assert decoded.size == (40, 24)
    wanted = expected.convert("RGB").convert(decoded.mode)
    assert np.abs(np.asarray(decoded, int) - np.asarray(wanted, int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif)))
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    decoded = decode_image(encoded(picture, "PNG", exif=exif), 3)
    assert (np.asarray(decoded) == np.asarray(upright)).all()


def test_fit_square_is_torchvisions_resize_and_centre_crop(picture: Image.Image) -> None:
    from torchvision.transforms import v2

    reference = v2.Compose([v2.Resize(20), v2.CenterCrop(16)])
    assert (np.asarray(fit_square(picture, 16, 20)) == np.asarray(reference(picture))).mean() > 0.99
    square = picture.crop((0, 0, 24, 24))
    assert fit_square(square, 24) is square


def test_packed_pixels_keep_or_change_size_and_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    assert (pack_pixels(pixels, 8, 1) == pixels).all()
    assert pack_pixels(pixels, 16, 3).shape == (5, 3, 16, 16)


# Augmentation

GREY = InputConfig(size=8, channels=1, mean=(0.3,), std=(0.4,), augmentation="crop-flip", crop_padding=2)


def test_crops_are_windows_of_the_padded_image() -> None:
    pixels = torch.randint(1, 255, (64, 1, 8, 8), dtype=torch.uint8)
    view = GREY.model_copy(update={"augmentation": "crop"})
    out = augment(pixels, view, torch_generator("a"))
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    offsets = set()
    for image, whole in zip(out, padded, strict=True):
        matches = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(image, whole[:, y : y + 8, x : x + 8])
        ]  # fmt: skip
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) > 15  # 25 offsets, 64 draws


def test_flips_are_about_half_and_seeded() -> None:
    pixels = torch.randint(0, 255, (400, 1, 8, 8), dtype=torch.uint8)
    view = GREY.model_copy(update={"crop_padding": 0})
    out = augment(pixels, view, torch_generator("b"))
    flipped = (out == pixels.flip(3)).all((1, 2, 3))
    assert ((out == pixels).all((1, 2, 3)) | flipped).all()
    assert 150 < flipped.sum() < 250
    assert torch.equal(out, augment(pixels, view, torch_generator("b")))
    assert not torch.equal(out, augment(pixels, view, torch_generator("c")))


def test_normalise_is_torchvisions() -> None:
    from torchvision.transforms import v2

    pixels = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    view = InputConfig(size=8, augmentation="none")
    expected = v2.Normalize(view.mean, view.std)(pixels.float() / 255)
    torch.testing.assert_close(normalise(pixels, view), expected)


def test_random_resized_boxes_lie_inside_and_have_the_right_shape() -> None:
    sizes = torch.tensor([[500, 375], [100, 900], [32, 32], [3, 400]]).repeat(200, 1)
    boxes = random_resized_boxes(sizes, torch_generator("r"))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= sizes[:, 0]).all()
    assert (boxes[:, 3] <= sizes[:, 1]).all()
    assert (width >= 1).all()
    assert (height >= 1).all()
    large = sizes[:, 0] == 500
    area = (width * height / (500 * 375))[large]
    assert area.min() < 0.2
    assert area.max() > 0.85
    aspect = (width / height)[large]
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35


def test_colour_jitter_keeps_range_and_shape() -> None:
    pixels = torch.randint(0, 255, (16, 3, 8, 8), dtype=torch.uint8)
    view = InputConfig(size=8, augmentation="none", color_jitter=0.4)
    out = augment(pixels, view, torch_generator("j"))
    assert out.dtype == torch.uint8
    assert out.shape == pixels.shape
    assert not torch.equal(out, pixels)
    means = out.float().mean((1, 2, 3)) / pixels.float().mean((1, 2, 3))
    assert means.min() > 0.55
    assert means.max() < 1.45


# Loading


def test_files_and_packed_pixels_give_the_same_batches(digit_images: Path) -> None:
    write_lists(digit_images)
    paths = tuple(line.split()[0] for line in (digit_images / "train.txt").read_text().splitlines())
    labels = torch.zeros(len(paths), dtype=torch.int64)
    packed = pack_files(str(digit_images), paths, 8, 1)
    assert packed is not None
    sources = [ImageFiles(str(digit_images), paths), PackedPixels(torch.from_numpy(packed))]
    order = torch.randperm(len(paths), generator=torch_generator("o"))
    batches = [
        list(LabelledImages(source, labels, GREY).train_batches(order, 8, torch.device("cpu"), "s", 0))
        for source in sources
    ]
    for ((a,), _), ((b,), _) in zip(*batches, strict=True):
        assert torch.equal(a, b)


def test_random_resized_crops_are_cut_from_files(digit_images: Path) -> None:
    paths = tuple(f"train/digit-0/{path.name}" for path in sorted((digit_images / "train" / "digit-0").iterdir()))
    view = InputConfig(size=12, channels=1, mean=(0.3,), std=(0.4,))
    data = LabelledImages(ImageFiles(str(digit_images), paths), torch.zeros(len(paths), dtype=torch.int64), view)
    epochs = [
        torch.cat([x for (x,), _ in data.train_batches(torch.arange(20), 8, torch.device("cpu"), "s", epoch)])
        for epoch in (0, 0, 1)
    ]
    assert epochs[0].shape == (20, 1, 12, 12)
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    data = LabelledImages(PackedPixels(torch.zeros(17, 1, 8, 8, dtype=torch.uint8)), torch.zeros(17).long(), GREY)
    sizes = [len(y) for _, y in data.train_batches(torch.arange(17), 8, torch.device("cpu"), "s")]
    assert sizes == [8, 9]


# Digests


def test_digests_follow_content_and_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    import hashlib

    root = write_digits(tmp_path / "d", train=(3, 2), test=1)
    paths = [str(path.relative_to(root)) for path in sorted(root.rglob("*.png"))]
    first = content_digests(str(root), paths, tmp_path / "cache")
    assert first == [hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths]
    stat = (root / paths[0]).stat()
    (root / paths[0]).write_bytes(bytes(stat.st_size))
    os.utime(root / paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digests(str(root), paths, tmp_path / "cache") == first  # same size and time: taken from the cache
    os.utime(root / paths[0])
    assert content_digests(str(root), paths, tmp_path / "cache")[0] != first[0]
    assert stat_files(str(root), ["absent.png"]) == [None]
