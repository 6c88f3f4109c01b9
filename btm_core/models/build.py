"""Build a classifier by the name of its backbone."""

import torch
from torch import Tensor, nn

from btm_core.config import BACKBONES
from btm_core.errors import ConfigError
from btm_core.models.cifar_resnet import CifarResNet
from btm_core.models.small_cnn import SmallCNN
from btm_core.seeding import derive_seed

__all__ = ["Classifier", "build_model", "needs_torchvision", "trainable_modules"]

CIFAR_DEPTHS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56}


class Classifier(nn.Module):
    """backbone (B, K, S, S) -> (B, D) and linear head (B, D) -> (B, C)."""

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, last_block: str):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(feature_dim, num_classes)  # weight (C, D)
        self.last_block = last_block

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def build_model(backbone: str, num_classes: int, channels: int = 3, seed: int = 0) -> Classifier:
    """Return a freshly initialised classifier; the same seed gives the same weights, whatever was drawn before.

    Arguments:
    - backbone: one of `btm_core.config.BACKBONES`.
    - num_classes: C.
    - channels: K, channels of the input.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("init", seed))
        if backbone == "small_cnn":
            small = SmallCNN(channels)
            return Classifier(small, small.feature_dim, num_classes, small.last_block)
        if backbone in CIFAR_DEPTHS:
            resnet = CifarResNet(CIFAR_DEPTHS[backbone], channels)
            return Classifier(resnet, resnet.feature_dim, num_classes, resnet.last_block)
        return _torchvision_resnet(backbone, num_classes, channels)


def needs_torchvision(backbone: str) -> bool:
    """Whether a backbone is built by torchvision."""
    return backbone != "small_cnn" and backbone not in CIFAR_DEPTHS


def _torchvision_resnet(backbone: str, num_classes: int, channels: int) -> Classifier:
    """ResNet and ResNeXt of torchvision, without its head. Imported here: torchvision takes seconds to import."""
    from torchvision.models import resnet

    if backbone == "resnext101_32x4d":  # the one of PaCo; torchvision has no builder for it
        network = resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    elif backbone == "cifar_resnet18":  # the one of PASCL on CIFAR: https://github.com/kuangliu/pytorch-cifar
        network = resnet.resnet18(weights=None)
        network.conv1, network.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    elif backbone in BACKBONES:
        network = getattr(resnet, backbone)(weights=None)
    else:
        raise ConfigError(f"unknown backbone {backbone!r}; known are {', '.join(BACKBONES)}")
    if channels != network.conv1.in_channels:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    feature_dim = network.fc.in_features
    network.fc = nn.Identity()
    return Classifier(network, feature_dim, num_classes, f"layer4.{len(network.layer4) - 1}")


def trainable_modules(model: Classifier, part: str) -> list[nn.Module]:
    """Return the modules of a part; the others stay frozen, their BN in evaluation mode.

    - all, backbone, head, last_block_and_head (Table 8).
    - last_block_head_and_norms: the last block, the head, and every BN, as GPaCo on Places-LT.
    """
    last = [model.backbone.get_submodule(model.last_block), model.head]
    norms = [module for module in model.backbone.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    inside = {id(module) for module in last[0].modules()}
    parts: dict[str, list[nn.Module]] = {
        "all": [model],
        "backbone": [model.backbone],
        "head": [model.head],
        "last_block_and_head": last,
        "last_block_head_and_norms": [*last, *(norm for norm in norms if id(norm) not in inside)],
    }
    return parts[part]
