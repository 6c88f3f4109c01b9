"""A network for very small images: three convolutions with batch normalisation."""

from torch import Tensor, nn

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Backbone (B, K, S, S) -> (B, 64), S >= 4; 56,000 parameters at K = 1.

    Arguments:
    - channels: K.
    """

    feature_dim = 64
    last_block = "conv3"

    def __init__(self, channels: int = 1):
        super().__init__()
        self.conv1 = self._block(channels, 32)
        self.conv2 = self._block(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = self._block(64, 64)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, 64)."""
        features: Tensor = self.conv3(self.pool(self.conv2(self.conv1(x))))
        return features.mean((2, 3))
