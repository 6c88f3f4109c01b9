"""Split a lock file for an image without CUDA: the locked rest to standard output, torch's versions to a file.

Usage: without_cuda.py requirements.lock torch.txt > rest.lock
"""

import re
import sys
from pathlib import Path

CUDA = re.compile(r"(nvidia|cuda|triton)\b")  # nvidia-cublas, cuda-toolkit, ...: only torch's CUDA wheels need them
TORCH = ("torch", "torchvision")


def split(lock: str) -> tuple[str, list[str]]:
    """Return the lock without torch and CUDA, and the pins of torch and torchvision."""
    rest, pins = [], []
    for block in re.split(r"\n(?=\S)", lock.strip()):
        name, _, version = block.split()[0].partition("==")
        if name in TORCH:
            pins.append(f"{name}=={version}")
        elif not CUDA.match(name):
            rest.append(block)
    return "\n".join(rest) + "\n", pins


if __name__ == "__main__":
    rest, pins = split(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text("\n".join(pins) + "\n")
    sys.stdout.write(rest)
