"""Round a checkpoint's weights to bfloat16, which halves the file.

    python examples/emoji/bf16.py runs/emoji-ar/ar.pt examples/emoji/emoji.pt

Of a tokenizer file only the averaged weights are kept, which are those that are used.
"""

import sys
from pathlib import Path

from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.notes import METADATA
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.checkpoints.writing import save_whole


def main(source: Path, target: Path) -> None:
    """Write the target."""
    checkpoint, notes = read_checkpoint(source), read_file(source, check=False).notes
    (file,) = checkpoint.files
    state = {
        name if checkpoint.spec.transformer is None else file.names[name]: tensor.bfloat16()
        for name, tensor in checkpoint.tensors().items()
    }
    save_whole({"state_dict": state, METADATA: notes}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
