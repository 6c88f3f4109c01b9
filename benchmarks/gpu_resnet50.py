"""ResNet-50 at 224 pixels on a GPU: how much of a bare step's speed the trainer keeps. A part of `benchmarks.gpu`."""

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_data import Bench
from benchmarks.rows import at_least, cores

SHARE = 0.7

__all__ = ["resnet50"]


def resnet50(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the rows of ResNet-50 in bfloat16: what the trainer loses to data, and to being a trainer."""
    tiny = bench.arguments.tiny
    size, batch, batches = (32, 4, 2) if tiny else (224, 256, 12)
    files = write_jpegs(bench, bench.folder / "jpeg", batch * batches, 40 if tiny else 256)
    kilobytes = round(statistics.mean(path.stat().st_size for path in files) / 1000, 1)
    bare = [bare_step(bench, size, batch, batches) for _ in range(bench.arguments.repetitions)]
    ways = {"random-resized-crop": "JPEG files, random resized crops", "crop-flip": "images decoded once"}
    for augmentation, name in ways.items():
        speeds = trained(bench, files, size, batch, augmentation)
        yield at_least(
            f"ResNet-50 at {size} px, bfloat16, batch {batch}, {name}: images/s over those of bare synthetic steps",
            [speed / statistics.median(bare) for speed in speeds],
            "x",
            SHARE,
            images_per_second={"ours": round(statistics.median(speeds)), "bare": round(statistics.median(bare))},
            jpeg={"kilobytes": kilobytes, "shorter_side": 40 if tiny else 256, "made_of": "CIFAR-100, enlarged, noise"},
            cores=cores(),
        )


def write_jpegs(bench: Bench, folder: Path, count: int, shorter: int) -> list[Path]:
    """Write test images enlarged to `shorter` pixels, with noise so that they weigh what photographs do."""
    from PIL import Image

    folder.mkdir()
    pixels = bench.test.images.pixels.permute(0, 2, 3, 1).numpy()

    def write(number: int) -> Path:
        small = Image.fromarray(pixels[number % len(pixels)])
        image = small.resize((shorter * 4 // 3, shorter), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).normal(0, 6, (shorter, shorter * 4 // 3, 1))
        path = folder / f"{number:05d}.jpg"
        Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        return path

    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(write, range(count)))


def bare_step(bench: Bench, size: int, batch: int, batches: int) -> float:
    """Return images/s of forward, backward and SGD on one batch that lies on the device, as fast as torch can.

    Without deterministic algorithms, which the trainer keeps to: what those cost is not taken off.
    """
    import torch

    from btm_core.models import build_model

    model = build_model("resnet50", 100).to(bench.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    x = torch.randn(batch, 3, size, size, device=bench.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(100, (batch,), device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    careful = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    for _ in range(3):
        step()
    with bench.timed() as took:
        for _ in range(batches):
            step()
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(careful, warn_only=True)
    return batch * batches / took[0]


def trained(bench: Bench, files: Sequence[Path], size: int, batch: int, augmentation: str) -> list[float]:
    """Return images/s of epochs of our trainer, after one that is not counted."""
    import torch

    from btm_core.config import FinetuneConfig, InputConfig
    from btm_core.data.dataset import LabelledImages
    from btm_core.data.files import content_digests
    from btm_core.data.images import ImageFiles, PackedPixels
    from btm_core.data.pixel_store import PixelStore
    from btm_core.models import build_model
    from btm_core.training import part_trainer

    view = InputConfig(size=size, augmentation=augmentation)
    root, names = str(files[0].parent), [path.name for path in files]
    digests = np.array([list(bytes.fromhex(digest)) for digest in content_digests(root, names, None)], np.uint8)
    images: Any = ImageFiles(root, names, digests).kept_in(PixelStore(memory=16 * 2**30), 3)
    if view.decode_once:
        images = PackedPixels(images.batch(view, None))
    data = LabelledImages(images, torch.arange(len(files)) % 100, view)
    config = FinetuneConfig(epochs=1 + bench.arguments.repetitions, batch_size=batch)
    model = build_model("resnet50", 100)
    trainer = part_trainer(model, "all", data, config, seed=("gpu",), precision="bfloat16", device=bench.device)
    speeds = [record.images / record.seconds for record in trainer]
    return speeds[1:]
