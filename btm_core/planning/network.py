"""The size of a network, without making its weights."""

from dataclasses import dataclass

__all__ = ["NetworkSize", "network_size"]


@dataclass(frozen=True)
class NetworkSize:
    """Parameters, and the bytes of its tensors in a checkpoint (weights and BN statistics)."""

    parameters: int
    checkpoint_bytes: int


def network_size(backbone: str, num_classes: int, channels: int) -> NetworkSize:
    """Return the size of a classifier."""
    import torch

    from btm_core.models import build_model

    with torch.device("meta"):  # shapes without values: a ResNet-152 in milliseconds
        model = build_model(backbone, num_classes, channels)
    tensors = model.state_dict().values()
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
