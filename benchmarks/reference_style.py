"""The BTM stage in the style of the published reference code, decently configured: what `btm` is compared with.

One fine-tune after another; every image is decoded again from its file in every epoch by a `DataLoader` with workers,
augmented by torchvision image by image; the test split is evaluated after each epoch; all checkpoints are loaded into
memory to be averaged. Configured as one would: persistent, pinned and prefetching workers, no gradients and large
batches in evaluation, `zero_grad(set_to_none)`, no synchronisation within an epoch, cuDNN's search for algorithms.
`--precision bfloat16` is autocast with channels_last, also in evaluation, which the published code has not.

Of btm_core it takes what makes the comparison one of equal work: the network, the checkpoint, the subsets, the metrics;
nothing of its data path, trainer or merging. `python -m benchmarks.reference_style --data TREE --checkpoint FILE`
prints one JSON document. TREE holds train.txt and test.txt with `path label` lines (`benchmarks.cifar_tree`).
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from benchmarks.rows import cores
from btm_core.checkpoints import load_into
from btm_core.metrics import recall_report
from btm_core.models import build_model
from btm_core.sampling import balanced_subset

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SGD = {"lr": 5e-3, "momentum": 0.9, "weight_decay": 5e-4}  # the paper, section 4.1
BATCH, MIXUP = 256, 1.0  # section 4.1; the augmentation of the pre-train stage, MiSLAS's alpha


class ListedImages(Dataset[tuple[Tensor, int]]):
    """Image files named by a list, opened and decoded whenever they are asked for."""

    def __init__(self, root: Path, listing: str, transform: Any):
        lines = [line.rsplit(" ", 1) for line in (root / listing).read_text().splitlines()]
        self.paths, self.labels = [root / path for path, _ in lines], [int(label) for _, label in lines]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[position]) as image:
            return self.transform(image.convert("RGB")), self.labels[position]


@dataclass
class Program:
    """The settings of a run, its data, and what it has measured."""

    arguments: argparse.Namespace
    seconds: Counter[str] = field(default_factory=Counter)
    images: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *tensor]
        root = self.arguments.data
        self.train = ListedImages(root, "train.txt", transforms.Compose(augmented))
        self.test = ListedImages(root, "test.txt", transforms.Compose(tensor))
        self.counts = np.bincount(self.train.labels)
        self.device = torch.device(self.arguments.device)
        self.low = self.arguments.precision == "bfloat16"
        self.test_loader = self.loader(self.test, shuffle=False)

    def loader(self, images: Dataset[tuple[Tensor, int]], shuffle: bool) -> "DataLoader[tuple[Tensor, int]]":
        workers = self.arguments.workers
        return DataLoader(
            images,
            BATCH,
            shuffle=shuffle,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - start

    def model(self) -> nn.Module:
        """Return the network with the weights of stage 1, on the device."""
        model = build_model("resnet32", len(self.counts))
        load_into(model, self.arguments.checkpoint)
        model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.low else model

    def show(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if self.low else x

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            logits: Tensor = model(x)
        return logits.float()

    def fine_tune(self, index: int) -> tuple[nn.Module, dict[str, Any]]:
        """Train the whole network on one balanced subset; return it, with its last evaluation."""
        arguments = self.arguments
        torch.manual_seed(1000 * arguments.seed + index)
        np.random.seed(1000 * arguments.seed + index)
        positions = balanced_subset(self.train.labels, arguments.shots, arguments.seed, index)
        loader = self.loader(Subset(self.train, positions.tolist()), shuffle=True)
        model = self.model()
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)
        figures: dict[str, Any] = {}
        for epoch in range(1, arguments.epochs + 1):
            self.train_epoch(model, loader, optimizer)
            schedule.step()
            last = arguments.evaluate == "once" and epoch == arguments.epochs
            if last or arguments.evaluate == "each-epoch":
                figures = self.evaluate(model)
        return model, figures

    def train_epoch(
        self, model: nn.Module, loader: "DataLoader[tuple[Tensor, int]]", optimizer: torch.optim.Optimizer
    ) -> None:
        """One pass; waiting for images counts as `data`, all else as `training`."""
        model.train()
        loss_of = nn.CrossEntropyLoss()
        waited = 0.0
        start = asked = time.perf_counter()
        for images, labels in loader:
            waited += time.perf_counter() - asked
            x, y = self.show(images), labels.to(self.device, non_blocking=True)
            lam, partner = float(np.random.beta(MIXUP, MIXUP)), torch.randperm(len(y), device=self.device)
            logits = self.forward(model, lam * x + (1 - lam) * x[partner])
            loss = lam * loss_of(logits, y) + (1 - lam) * loss_of(logits, y[partner])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            self.images, self.steps = self.images + len(labels), self.steps + 1
            asked = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds["data"] += waited
        self.seconds["training"] += time.perf_counter() - start - waited

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Return accuracy, H-mean and so on, of the test split."""
        with self.timed("evaluation"):
            model.eval()
            predicted = [self.forward(model, self.show(x)).argmax(1).cpu() for x, _ in self.test_loader]
            return recall_report(self.test.labels, torch.cat(predicted).numpy(), self.counts).summary()

    def merge(self, paths: list[Path]) -> nn.Module:
        """Load all checkpoints, and average them: 1 / N_D each."""
        with self.timed("merge"):
            states = [load_file(path) for path in paths]
            soup = {
                name: sum(state[name].double() for state in states).div(len(states)).to(first.dtype)
                for name, first in states[0].items()
            }
            model = self.model()
            model.load_state_dict(soup)
        return model

    def run(self) -> dict[str, Any]:
        began = psutil.Process().create_time()
        self.seconds["start"] = time.time() - began
        ingredients, paths = [], []
        with tempfile.TemporaryDirectory() as folder:
            for index in range(self.arguments.subsets):
                model, figures = self.fine_tune(index)
                ingredients.append(figures.get("accuracy"))
                with self.timed("merge"):
                    paths.append(Path(folder, f"{index}.safetensors"))
                    save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, paths[-1])
            merged = self.merge(paths)
            soup = None if self.arguments.evaluate == "none" else self.evaluate(merged)
        total = time.time() - began
        spent = self.seconds["data"] + self.seconds["training"]
        return {
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.arguments).items()},
            "seconds": {"total": total, **self.seconds},
            "images": self.images,
            "steps": self.steps,
            "images_per_second": self.images / spent,
            "ingredients": ingredients,
            "soup": soup,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images with train.txt and test.txt")
    parser.add_argument("--checkpoint", type=Path, required=True, help="safetensors file of stage 1")
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--evaluate", choices=("each-epoch", "once", "none"), default="each-epoch")
    parser.add_argument("--workers", type=int, help="of each DataLoader")
    parser.add_argument("--threads", type=int, default=cores(), help="of torch, on a CPU")
    arguments = parser.parse_args()
    if arguments.workers is None:
        arguments.workers = min(cores(), 8)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    print(json.dumps(Program(arguments).run()))


if __name__ == "__main__":
    main()
