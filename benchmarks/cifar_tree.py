"""CIFAR100-LT as PNG files, with `path label` lists: what a user has whose data set is a folder of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[2] / "shared" / "data" / "unpack_cifar100.py"

__all__ = ["cifar_root", "write_tree"]


def cifar_root(folder: Path) -> Path:
    """Return where CIFAR-100 is, or is to be fetched to: unpacked into `folder` where a copy is at hand."""
    if not SHARED.is_file():
        return Path(".btm/data")
    subprocess.run([sys.executable, str(SHARED), "binary", str(folder)], check=True, capture_output=True)
    return folder


def write_tree(root: Path, tree: Path, train_per_class: int | None = None, test_per_class: int | None = None) -> None:
    """Write train.txt, test.txt, class_names.txt and the images they name below `tree`.

    CIFAR-100 has a few images in both splits, which BTM refuses of files: those are left out of the test split.

    Arguments:
    - root: where the official CIFAR-100 is, or is to be fetched to.
    - train_per_class, test_per_class: at most so many images a class, for a quick look; default: all.
    """
    from PIL import Image

    from btm_core.config import load_experiment
    from btm_core.data import scan

    config = load_experiment("cifar100-lt").data
    catalog = scan(config.model_copy(update={"root": str(root)}))
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "class_names.txt").write_text("\n".join(catalog.class_names) + "\n")
    for split, most in ((catalog.train, train_per_class), (catalog.test, test_per_class)):
        assert split.pixels is not None and catalog.train.pixels is not None
        of_class = [np.flatnonzero(split.labels == c)[:most] for c in range(len(catalog.class_names))]
        lines = []
        known = {image.tobytes() for image in catalog.train.pixels} if split is catalog.test else set()
        for position in np.sort(np.concatenate(of_class)).tolist():
            if split.pixels[position].tobytes() in known:
                continue
            label = int(split.labels[position])
            path = f"{split.name}/{catalog.class_names[label]}/{position:05d}.png"
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.pixels[position].transpose(1, 2, 0)).save(tree / path, optimize=True)
            lines.append(f"{path} {label}\n")
        (tree / f"{split.name}.txt").write_text("".join(lines))
