"""How pictures become the input of a feature network: resized, then scaled.

Half of the disagreement between published numbers comes from here, so each rule is a record that a
protocol takes over field by field. Sources: pytorch-fid 0.3 (bilinear, align_corners=False, no
antialias); TensorFlow 1's resize_bilinear, whose output i looks at input i * scale, not at the
pixel's centre, as torch-fidelity documents it; clean-fid 0.1.35 (Pillow's bicubic on floats,
clipped to 0..255).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from m2kit.errors import InputError

_SLACK = 1e-4  # beyond [0, 1], of rounding


@dataclass(frozen=True, slots=True)
class InputRule:
    """What is done with a picture.

    Attributes:
        size: Height and width in pixels.
        resize: A name of RESIZES.
        mean: Of red, green and blue in grey levels (0..255), subtracted after resizing.
        std: Of the same, by which the difference is divided.
    """

    size: tuple[int, int]
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: A size or std that is not positive, or a resize of another name.
        """
        if self.resize not in RESIZES:
            raise InputError(
                f"no resize is called {self.resize!r}; choose one of: {'; '.join(RESIZES)}"
            )
        if min(self.size) < 1 or min(self.std) <= 0:
            raise InputError(f"an input rule of size {self.size} and std {self.std} cannot be")

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], or (B, 3, T, H, W), whose frames are pictures.

        Returns:
            (B, 3, *size) float32, or (B, 3, T, *size).

        Raises:
            InputError: Other shapes, types or values.
        """
        if images.ndim == 5:
            frames = self(images.transpose(1, 2).flatten(0, 1))
            return frames.reshape(len(images), -1, *frames.shape[1:]).transpose(1, 2)
        check_images(images)
        resized = RESIZES[self.resize](images.clamp(0, 1) * 255, self.size)
        mean, std = (resized.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        scaled: Tensor = (resized - mean) / std
        return scaled


def ranged(size: tuple[int, int], resize: str, low: float = 0.0, high: float = 1.0) -> InputRule:
    """The rule of a network that takes values from `low` (black) to `high` (full).

    Raises:
        InputError: `low` is not below `high`, or as for InputRule.
    """
    if not low < high:
        raise InputError(f"a range from {low} to {high} cannot be")
    mean, std = -255 * low / (high - low), 255 / (high - low)
    return InputRule(size, resize, (mean,) * 3, (std,) * 3)


def check_images(images: Tensor) -> None:
    """Refuse what is no (B, 3, H, W) float32 in [0, 1].

    Raises:
        InputError: Other shapes, types or values; [-1, 1] fed for [0, 1] is a common mistake.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise InputError(
            f"expected (B, 3, H, W) float32, found {tuple(images.shape)} {images.dtype}"
        )
    if not images.numel():
        raise InputError("expected pictures, found none")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(f"expected pictures in [0, 1], found values from {low:.3g} to {high:.3g}")


def _bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def _bilinear_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(
        images, size, mode="bilinear", align_corners=False, antialias=True
    )


def _pillow_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """With antialias torch's kernel is Pillow's, whose bicubic has a = -0.5."""
    resized = functional.interpolate(
        images, size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 255)


def _tensorflow_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """resize_bilinear of TensorFlow 1 with align_corners=False: across, then down."""
    across = _interpolated(images, size[1])
    return _interpolated(across.transpose(2, 3), size[0]).transpose(2, 3)


def _interpolated(images: Tensor, count: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H, count): output i is between the two inputs at i * W / count."""
    width = images.shape[3]
    scale = torch.tensor(width / count, dtype=torch.float32, device=images.device)
    places = torch.arange(count, dtype=torch.float32, device=images.device) * scale
    low = places.long().clamp_max(width - 1)
    left = images[..., low]
    right = images[..., (low + 1).clamp_max(width - 1)]
    return left + (right - left) * (places - low)


RESIZES: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "bilinear, no antialias": _bilinear,
    "bilinear, antialias": _bilinear_antialiased,
    "tf bilinear": _tensorflow_bilinear,
    "PIL bicubic float": _pillow_bicubic,
}
