"""CIFAR100-LT for a machine without a network: PNG files in one file that travels, and what is measured on there."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cifar_tree import cifar_root, write_tree

if TYPE_CHECKING:
    import torch

    from btm_core.config import ExperimentConfig
    from btm_core.data.dataset import LabelledImages

__all__ = ["Bench", "load", "prepare"]


def prepare(output: Path, root: Path | None = None, **limits: int) -> None:
    """Pack the PNG files of CIFAR100-LT with their lists; `limits` are those of `write_tree`."""
    from safetensors.numpy import save_file

    arrays = {}
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name, "tree")
        write_tree(root or cifar_root(Path(name, "cifar")), tree, **limits)
        for file in sorted(path for path in tree.rglob("*") if path.is_file()):
            arrays[str(file.relative_to(tree))] = np.frombuffer(file.read_bytes(), np.uint8)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def unpack(packed: Path, tree: Path) -> None:
    """Write the files that `prepare` packed."""
    from safetensors.numpy import load_file

    for name, data in load_file(packed).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data.tobytes())


@dataclass(frozen=True)
class Bench:
    """What is measured on: a tree of files, the same decoded, the experiment, the device."""

    arguments: argparse.Namespace
    folder: Path
    experiment: "ExperimentConfig"
    train: "LabelledImages"
    test: "LabelledImages"
    counts: "torch.Tensor"
    decoding_seconds: float

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device(self.arguments.device)

    @property
    def precision(self) -> str:
        return str(self.experiment.model.precision)

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """Give a list that holds the block's seconds when it has ended, on the device too."""
        took: list[float] = []
        self._synchronize()
        start = time.perf_counter()
        yield took
        self._synchronize()
        took.append(time.perf_counter() - start)

    def _synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def load(arguments: argparse.Namespace, folder: Path) -> Bench:
    """Unpack the files, and decode them once, as a data artifact of ours holds them."""
    import torch

    from btm_core.config import load_experiment
    from btm_core.data.dataset import LabelledImages
    from btm_core.data.images import ImageFiles, PackedPixels
    from btm_core.data.sources import read_list

    tiny = ["sampling.num_subsets=2", "sampling.shots=2", "finetune.epochs=1", "pretrain.epochs=1"]
    tiny += ["pretrain.milestones=[]", "pretrain.warmup_epochs=0", "post_train.epochs=1"]
    overrides = [f"model.precision={arguments.precision}", f"seed={arguments.seed}", *(tiny if arguments.tiny else [])]
    experiment = load_experiment("cifar100-lt", overrides)
    tree = folder / "tree"
    unpack(arguments.data, tree)
    start = time.perf_counter()
    splits = []
    for listing in ("train.txt", "test.txt"):
        paths, labels = read_list((tree / listing).read_text(), listing)
        pixels = ImageFiles(str(tree), paths).batch(experiment.data.input, None)
        splits.append(LabelledImages(PackedPixels(pixels), torch.as_tensor(labels), experiment.data.input))
    counts = torch.bincount(splits[0].labels)
    return Bench(arguments, folder, experiment, *splits, counts, time.perf_counter() - start)
