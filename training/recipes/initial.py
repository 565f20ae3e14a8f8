"""The weights that a tokenizer's training starts from: those of a checkpoint file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from m2kit.errors import CheckpointError, InputError
from m2kit.families.convolutional import ConvolutionalSpec
from m2kit.records import to_json
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.reading import Checkpoint, read_checkpoint
from m2kit.training.models.model import TRANSFORMER

DISCRIMINATOR = "loss.discriminator."  # begins the names of its tensors in training files


def load_tokenizer(path: Path, tokenizer: nn.Module, spec: ConvolutionalSpec) -> None:
    """Take over the weights that the file's model is used with, the averaged ones where it has any.

    Args:
        path: A tokenizer file, or an AR file with a tokenizer.
        tokenizer: Takes them.
        spec: Its architecture.

    Raises:
        CheckpointError: The file cannot be used.
        InputError: It holds another architecture.
    """
    tensors = read_initial(path, spec).tensors()
    tokenizer.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if not name.startswith(TRANSFORMER)}
    )


def read_initial(path: Path, spec: ConvolutionalSpec) -> Checkpoint:
    """A file to start from, of such an architecture, as `load_tokenizer` would take it; clips may
    be longer or shorter than those that it was trained on."""
    checkpoint = read_checkpoint(path)
    own = checkpoint.spec.tokenizer
    found = {"family": own.family, **to_json(own)}
    wanted = {"family": spec.family, **to_json(spec)}
    others = [n for n in wanted if n != "frames" and found.get(n) != wanted[n]]
    if others:
        shown = ", ".join(f"{name} {found.get(name)} (asked for {wanted[name]})" for name in others)
        raise InputError(
            f"{path} holds another architecture: {shown}; ask for that of the file", option="--init"
        )
    return checkpoint


def load_discriminator(path: Path, discriminator: nn.Module) -> bool:
    """Take over the discriminator of a training file.

    Args:
        path: The file.
        discriminator: Takes its weights.

    Returns:
        Whether there is one in the file.

    Raises:
        CheckpointError: It is another one, or not finite.
    """
    tensors = read_file(path, check=False).tensors
    found = {
        name.removeprefix(DISCRIMINATOR): tensor
        for name, tensor in tensors.items()
        if name.startswith(DISCRIMINATOR)
    }
    if not found:
        return False
    wanted = discriminator.state_dict()
    if _shapes(found) != _shapes(wanted):
        raise CheckpointError(
            f"{path} holds another discriminator than the one asked for; ask for that of the file, "
            "or start from its tokenizer.pt, which holds none",
            option="--adversary, --adversary-width, --init",
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise CheckpointError(f"{path} holds a discriminator with NaN or Inf", option="--init")
    discriminator.load_state_dict(found)
    return True


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
