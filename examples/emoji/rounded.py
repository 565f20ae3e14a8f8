"""Round an AR model's weights to few bits, to see what its pictures bear.

    python examples/emoji/rounded.py emoji64.npz examples/emoji/emoji.pt 3 rounded3.pt

Weights are rounded as in an int4 engine, in blocks of 32, but to 2 to 8 bits, and written as the
float32 values that they stand for; the heads keep 8 bits. Prints the KL divergence from the model
itself for each sub-token, a mean over the positions of the held-out pictures: what the quality gate
of integer weights measures (toolkit/tolerances.py), there on the likeliest tokens of two classes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from m2kit.engines.ort.quantization import SCHEMES, quantize_blocks
from m2kit.precision import Precision
from m2kit.runtime.quality import score_quality
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.notes import METADATA
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import save_whole
from m2kit.training.datasets.crops import images_of
from m2kit.training.datasets.table import dataset_named
from m2kit.training.models.model import TRANSFORMER, TorchModel
from m2kit.training.models.transformer import Transformer

SCHEME = SCHEMES[Precision.INT4]


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, in) float32, every value one of 2^bits multiples of its block's scale."""
    size_out, size_in = weight.shape
    values, scales = quantize_blocks(weight.numpy().T, bits, SCHEME.block_size)
    if bits == 4:  # two in a byte
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)
    steps = (values.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*values.shape[:2], 1)
    return torch.from_numpy(steps.reshape(size_out, -1)[:, :size_in].copy())


def round_weights(transformer: Transformer, bits: int) -> None:
    """In place."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            kept = SCHEME.head_bits if name.startswith("head") else bits
            module.weight.data = rounded(module.weight.data, kept)


@torch.no_grad()
def logits_of(model: TorchModel, images: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    """(n, positions, V_k) for each sub-token, all of them given the picture's own tokens before."""
    tokenizer, transformer = model.tokenizer, model.transformer
    assert transformer is not None
    parts = []
    for some, classes in zip(images.split(64), labels.split(64), strict=True):
        tokens = tokenizer.tokens(tokenizer.codes(some), model.spec.vocabularies)
        parts.append(transformer(classes, tokens.flatten(1, -2)))
    return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]


def main(data: str, source: Path, bits: int, target: Path) -> None:
    """Write the target and print the divergence."""
    checkpoint, notes = read_checkpoint(source), read_file(source, check=False).notes
    (file,) = checkpoint.files
    model = model_from_checkpoint(checkpoint)
    assert model.transformer is not None
    images, labels = images_of(dataset_named(data).load().held_out, 64)
    exact = logits_of(model, images, labels)
    round_weights(model.transformer, bits)
    kl = score_quality(exact, logits_of(model, images, labels)).kl
    print(f"{bits} bits: KL divergence " + ", ".join(f"{value:.2g}" for value in kl))
    mine = {TRANSFORMER + name: value for name, value in model.transformer.state_dict().items()}
    state = {file.names[name]: tensor for name, tensor in (checkpoint.tensors() | mine).items()}
    save_whole({"state_dict": state, METADATA: notes}, target)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
