"""Randomness by name, never by order of call.

Every random choice draws from a seed derived from what it is for, `derive_seed(run_seed, "finetune", 3, "order", 7)`,
so the same subset and the same fine-tune come out whatever the number of workers, and a resumed stage needs no saved
generator state.
"""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["derive_seed", "numpy_generator", "torch_generator"]


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that is a stable hash of `parts`: the same on any machine and Python version."""
    # default=int: NumPy's integers are integers
    digest = hashlib.sha256(json.dumps(parts, default=int).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(*parts: int | str) -> "np.random.Generator":
    """Return a NumPy generator (PCG64) seeded by `parts`."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def torch_generator(*parts: int | str) -> "torch.Generator":
    """Return a CPU generator seeded by `parts`. On the CPU always, so that a GPU run draws the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*parts))
