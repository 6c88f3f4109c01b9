"""Inner checkpoints: files that hold where a training stands, to go on from.

Two of them take turns in `partial/<address>/`: while one is written, or if it turns out damaged, the one before it is
still there. Each holds the sha256 of all that is in it. Without it a flipped bit would be trained on, and end in an
artifact that is wrong and verifies.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btm_core.errors import CheckpointError, StoreError
from btm_core.storage import Store, open_ranges

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STATES", "read_state", "saved_states", "write_state"]

STATES = ("state-0.safetensors", "state-1.safetensors")
RECORDS_KEY, DIGEST_KEY = "records", "sha256"


def write_state(state: "Mapping[str, Tensor]", records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a trainer's state and the records of its epochs, with their digest."""
    from btm_core.checkpoints import save_tensors

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    text = json.dumps(records)
    save_tensors(plain, path, {RECORDS_KEY: text, DIGEST_KEY: _digest(plain, text)})


def read_state(path: Path) -> "tuple[dict[str, Tensor], list[dict[str, Any]]]":
    """Return the state and the records of a local file. Raises CheckpointError if a bit of them is another by now."""
    from btm_core.tensor_files import load_tensors, read_header

    tensors = load_tensors(path)
    with path.open("rb") as file:
        metadata = read_header(file, str(path)).metadata
    text, told = metadata.get(RECORDS_KEY, ""), metadata.get(DIGEST_KEY)
    found = _digest(tensors, text)
    if found != told:
        raise CheckpointError(f"{path.name} is not what was written: sha256 {found}, it says {told}")
    records: list[dict[str, Any]] = json.loads(text)
    return tensors, records


def saved_states(store: Store, address: str) -> list[tuple[int, str]]:
    """Return after which epoch each state of a stage was saved, and its name; the newest first.

    Only headers are read. A state without one that can be understood counts as of epoch 0: whoever reads it will see.
    """
    from btm_core.tensor_files import read_header

    found = []
    for name in STATES:
        epochs = 0
        try:
            with open_ranges(store.locate("partial", address, name)) as ranges:
                epochs = len(json.loads(read_header(ranges.stream(), name).metadata[RECORDS_KEY]))
        except FileNotFoundError:
            continue
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found.append((epochs, name))
    return sorted(found, key=lambda state: state[0], reverse=True)


def _digest(tensors: "Mapping[str, Tensor]", records: str) -> str:
    """Return the sha256 (hex) of contiguous tensors on the CPU, with their names, types and shapes, and of records."""
    import torch

    digest = hashlib.sha256(records.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
