"""ResNet-20/32/44/56 for 32x32 images (He et al., CVPR 2016, section 4.2), with parameter-free shortcuts (option A).

Module names are those of the published CIFAR code (`conv1`, `bn1`, `layer1.0.conv1`, ...), so checkpoints read alike.
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet"]


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)  # (outputs, inputs, 3, 3)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widening = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widening or self.stride != 1:  # option A: subsample, and pad the new channels with zeros
            side = self.widening // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.widening - side))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Backbone of 6n + 2 layers: (B, K, S, S) -> (B, 64).

    Arguments:
    - depth: 20, 32, 44 or 56.
    - channels: K.
    """

    feature_dim = 64

    def __init__(self, depth: int, channels: int = 3):
        super().__init__()
        blocks = (depth - 2) // 6
        self.last_block = f"layer3.{blocks - 1}"
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = _BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, 64)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features.mean((2, 3))
