"""Round an AR model's weights to few bits, to see what its pictures bear.

    python examples/emoji/rounded.py emoji.bundle examples/emoji/emoji.pt 3 rounded3.pt

Weights are rounded to the nearest of 2 to 8 bits in blocks of 32, and written as the float32
values that they stand for; the heads keep 8 bits. Prints the KL divergence of each
sub-token from the model itself on the tokens of its bundle's reference: what the quality gate of
integer weights measures (toolkit/tolerances.py).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from m2kit.engines.ort.quantization import SCHEMES, quantize_blocks
from m2kit.precision import Precision
from m2kit.runtime.quality import score_quality
from m2kit.runtime.reference import Reference, read_reference
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.notes import METADATA
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import save_whole
from m2kit.training.models.model import TRANSFORMER
from m2kit.training.models.transformer import Transformer

BLOCK_SIZE = 32


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, in) float32, every value one of 2^bits multiples of its block's scale."""
    size_out, size_in = weight.shape
    values, scales = quantize_blocks(weight.numpy().T, bits, BLOCK_SIZE)
    if bits == 4:  # two in a byte
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)
    steps = (values.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*values.shape[:2], 1)
    return torch.from_numpy(steps.reshape(size_out, -1)[:, :size_in].copy())


def round_weights(transformer: Transformer, bits: int) -> None:
    """In place."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            kept = SCHEMES[Precision.INT4].head_bits if name.startswith("head") else bits
            module.weight.data = rounded(module.weight.data, kept)


@torch.no_grad()
def divergence(transformer: Transformer, reference: Reference) -> tuple[float, ...]:
    """KL divergence of each sub-token from the reference's logits, a mean over its positions."""
    known = reference.trajectory
    assert known is not None
    classes = np.concatenate(
        [known.class_ids, np.full_like(known.class_ids, transformer.spec.classes)]
    )
    tokens = np.concatenate([reference.tokens] * 2).reshape(len(classes), -1, len(known.logits))
    found = transformer(torch.from_numpy(classes), torch.from_numpy(tokens))
    pairs = zip(found, known.logits, strict=True)
    own = [part.numpy().reshape(exact.shape) for part, exact in pairs]
    return tuple(score_quality(list(known.logits), own).kl)


def main(bundle: Path, source: Path, bits: int, target: Path) -> None:
    """Write the target and print the divergence."""
    checkpoint, notes = read_checkpoint(source), read_file(source, check=False).notes
    (file,) = checkpoint.files
    transformer = model_from_checkpoint(checkpoint).transformer
    assert transformer is not None
    round_weights(transformer, bits)
    kl = divergence(transformer, read_reference(bundle, checkpoint.spec))
    print(f"{bits} bits: KL divergence " + ", ".join(f"{value:.2g}" for value in kl))
    mine = {TRANSFORMER + name: value for name, value in transformer.state_dict().items()}
    state = {file.names[name]: tensor for name, tensor in (checkpoint.tensors() | mine).items()}
    save_whole({"state_dict": state, METADATA: notes}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
