"""Whether torch computes: `python -m flows.doctor.kernel` runs a step of a small network on each device it sees.

In a process of its own: a driver that does not fit may end it, or keep it for ever.
"""

import json
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Print what torch is, and for each device its name and what went wrong there, as JSON."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": [_tried(device) for device in devices]}
    print(json.dumps(found))


def _tried(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    try:
        x = torch.ones(4, 3, 16, 16, device=device)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).to(device)
        loss = network(x).mean()
        loss.backward()
        if not bool(torch.isfinite(loss)):
            raise ArithmeticError(f"a small network gave {float(loss)}")
    except Exception as error:  # whatever torch and the driver come to
        lines = str(error).splitlines()
        return {"device": device, "name": name, "error": lines[0] if lines else type(error).__name__}
    return {"device": device, "name": name, "error": None}


if __name__ == "__main__":
    main()
