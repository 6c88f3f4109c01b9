"""A few images of a data artifact, to look at: read where they lie, and never all of them."""

import logging
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from btm_core.config import ExperimentConfig
from btm_core.errors import ArtifactError
from btm_core.storage import Artifact, Store
from btm_core.urls import without_credentials
from tasks.data import DIGESTS, PIXELS, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from btm_core.pages.thumbnails import Sample, Thumbnail
    from btm_core.report import ModelResult

__all__ = ["image_reader", "lowest_thumbnails", "within"]

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Longest wait for the images of a report."""
Result = TypeVar("Result")


def lowest_thumbnails(
    store: Store,
    data: Artifact,
    experiment: ExperimentConfig,
    report: dict[str, Any],
    final: "ModelResult",
    labels: "dict[str, NDArray[Any]]",
) -> "tuple[dict[int, list[Thumbnail]], str]":
    """Return small images of a report's lowest classes, and why there are none: that is no reason to lose a run."""
    from btm_core.pages.thumbnails import choose_samples, thumbnails

    count = experiment.evaluation.thumbnails
    if not count:
        return {}, "No images are shown: evaluation.thumbnails is 0."
    classes = [row["class"] for row in report["lowest_classes"]]
    answers = (labels["test"], final.predictions, final.confidences)
    samples = choose_samples(classes, labels["train"], *answers, count)
    try:
        found = within(SECONDS, lambda: thumbnails(samples, image_reader(store, data, experiment.data.root)))
    except Exception as error:  # whatever a disk, a network or a decoder comes up with
        why = without_credentials(str(error))
        log.warning("the report shows no images: %s", why)
        return {}, f"No images are shown, for they could not be read: {why[:300]}"
    missing = len(classes) - len(found)
    return found, f"Images of the last {missing} are left out: they would be too large." if missing else ""


def image_reader(store: Store, data: Artifact, root: str | None) -> "Callable[[Sequence[Sample]], list[Image]]":
    """Return what reads images of a data artifact, decoded.

    Of packed pixels only the bytes of those images are read, wherever the store is; files below `root` come through the
    worker's cache, and must be those of the artifact. Raises BTMError, or OSError, if they cannot be read.
    """
    if describe(store, data)["packed"]:
        return _packed(store.file_url(data, PIXELS))
    if root is None:
        raise ArtifactError(f"{data.address} holds no pixels, and data.root names no folder")
    return _files(store, data, root)


def _packed(url: str) -> "Callable[[Sequence[Sample]], list[Image]]":
    import numpy as np
    from PIL import Image

    from btm_core.storage import open_ranges
    from btm_core.tensor_files import read_header

    def read(samples: "Sequence[Sample]") -> "list[Image.Image]":
        images = []
        with open_ranges(url) as ranges:
            header = read_header(ranges.stream(), url)
            for sample in samples:
                entry = header.entries[sample.split]
                channels, height, width = entry.shape[1:]
                buffer = bytearray(channels * height * width)
                ranges.read_into(header.start + entry.first + sample.position * len(buffer), memoryview(buffer))
                pixels = np.frombuffer(buffer, np.uint8).reshape(channels, height, width)
                images.append(Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)))
        return images

    return read


def _files(store: Store, data: Artifact, root: str) -> "Callable[[Sequence[Sample]], list[Image]]":
    import tempfile
    from pathlib import Path

    from btm_core.data.files import decode
    from btm_core.data.reader import ImageReader
    from btm_core.data.sources import read_list
    from btm_core.tensor_files import load_arrays

    with tempfile.TemporaryDirectory(prefix="btm-") as folder:
        digests = load_arrays(store.fetch(data, DIGESTS, Path(folder)))
    listings = {name: store.read_file(data, f"{name}.txt") for name in digests}
    paths = {name: read_list((text or b"").decode(), f"{name}.txt")[0] for name, text in listings.items()}
    reader = ImageReader(root)

    def read(samples: "Sequence[Sample]") -> "list[Image]":
        named = [paths[sample.split][sample.position] for sample in samples]
        known = [digests[sample.split][sample.position].tobytes().hex() for sample in samples]
        return [decode(path, content, 3) for path, content in zip(named, reader.read(named, known), strict=True)]

    return read


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise TimeoutError: it then goes on in the background, and nobody waits for it."""
    done: Queue[tuple[Result | None, Exception | None]] = Queue(1)

    def run() -> None:
        try:
            done.put((work(), None))
        except Exception as error:
            done.put((None, error))

    Thread(target=run, daemon=True, name="btm-samples").start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(Result, result)
