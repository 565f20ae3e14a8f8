"""What each way to round an AR model's weights loses.

    python examples/emoji/rounding.py emoji.bundle emoji64.npz

For int8 and for int4 with blocks of 32, 64 and 128, rounded to the nearest and by what the weights
do: KL divergence of each sub-token and the share of positions whose likeliest id is another, on
images that the exact model draws and the rounding has not seen; the gate's own KL divergence; and
the bits of a position of real held-out pictures.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import m2kit
from m2kit.build import BLOCK_SIZES, BuildOptions
from m2kit.engines.building import build_engine
from m2kit.engines.ort.quantization import SCHEMES
from m2kit.precision import Precision
from m2kit.runtime.quality import score_quality
from m2kit.tolerances import KL
from m2kit.training.datasets.table import dataset_named

IMAGES, IMAGE_SEED, CLASS_SEED = 48, 991, 77
WAYS = [(Precision.INT8, None), *((Precision.INT4, size) for size in BLOCK_SIZES)]


def bits(engine: m2kit.Engine, classes: np.ndarray, tokens: np.ndarray) -> float:
    """Of a position, all its sub-tokens, a mean over pictures."""
    total = 0.0
    for k, logits in enumerate(engine.score(classes, tokens)):
        wide = logits.astype(np.float64)
        chosen = np.take_along_axis(wide, tokens[..., k, None], axis=-1)[..., 0]
        most = wide.max(axis=-1)
        norm = most + np.log(np.exp(wide - most[..., None]).sum(axis=-1))
        total += float((norm - chosen).mean()) / np.log(2)
    return total


def main(bundle: Path, data: str) -> None:
    """Print a line for each way."""
    held_out = dataset_named(data).load().held_out
    pictures = np.stack([held_out.read(index) for index in range(len(held_out.labels))])
    labels = np.asarray(held_out.labels)
    options = BuildOptions(precision=Precision.FLOAT32)
    with tempfile.TemporaryDirectory() as scratch:
        exact_folder, folder = Path(scratch) / "exact.engine", Path(scratch) / "a.engine"
        build_engine(bundle, exact_folder, "onnxruntime", options)
        exact = m2kit.open_engine(exact_folder)
        real, classes = exact.encode(pictures), exact.transformer.classes
        drawn = np.random.default_rng(CLASS_SEED).integers(0, classes, IMAGES)
        tokens = exact.sample(drawn, m2kit.Sampling(seed=IMAGE_SEED), batch=16)
        rows, both = np.append(drawn, [classes] * IMAGES), np.concatenate([tokens, tokens])
        logits = exact.score(rows, both)
        print(f"float32: {bits(exact, labels, real):.3f} bits")
        for precision, size in WAYS:
            scheme = SCHEMES[precision]
            for rounding in ("nearest", "gptq"):  # of which build-engine has one a precision
                SCHEMES[precision] = replace(scheme, rounding=rounding)
                options = BuildOptions(precision=precision, block_size=size, accept_quality=True)
                manifest = build_engine(bundle, folder, "onnxruntime", options)
                checks = manifest.parity.checks.items()
                gate = [c.found[KL] for name, c in checks if name.startswith("logits")]
                with m2kit.open_engine(folder) as engine:
                    found = score_quality(logits, engine.score(rows, both))
                    length = bits(engine, labels, real)
                print(
                    f"{precision.value}, blocks of {size or scheme.block_size}, {rounding}: KL "
                    + ", ".join(f"{kl:.2g}" for kl in found.kl)
                    + "; another likeliest id "
                    + ", ".join(f"{1 - same:.1%}" for same in found.top1)
                    + "; gate's KL "
                    + ", ".join(f"{kl:.2g}" for kl in gate)
                    + f"; {length:.3f} bits; {'passed' if manifest.parity.passed else 'failed'}"
                )
            SCHEMES[precision] = scheme


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
