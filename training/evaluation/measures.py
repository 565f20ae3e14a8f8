"""Numbers that say whether generated digits are digits, and not copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.svm import SVC

from m2kit.runtime.engine import Engine
from m2kit.runtime.sampling import Sampling
from m2kit.training.digits import CLASSES, digits, features


@dataclass(frozen=True, slots=True)
class DigitsReport:
    """What `evaluate_digits` measures; shares in 0..1.

    Attributes:
        images: Number of generated images.
        recognised: Share of generated images that the classifier takes for their class.
        real_recognised: The same classifier's accuracy on held-out real digits.
        copies: Share of generated images whose ids equal those of a training image.
        codebook_usage: Share of the 2^Z codes that the training images use.
    """

    images: int
    recognised: float
    real_recognised: float
    copies: float
    codebook_usage: float


def evaluate_digits(
    engine: Engine, per_class: int, seed: int
) -> tuple[DigitsReport, npt.NDArray[np.float32]]:
    """Generate digits with the engine's default sampling and judge them.

    Args:
        engine: An engine of a model trained on digits.
        per_class: Images per class.
        seed: Of the sampling.

    Returns:
        The report, and the images (10 * per_class, 3, 32, 32) in class order.
    """
    train, held_out = digits()
    classifier = SVC(gamma="scale", C=10.0)  # fitted on real training digits only
    classifier.fit(features(train.images.numpy()), train.labels.numpy())
    classes = np.arange(CLASSES).repeat(per_class)
    tokens = engine.sample(classes, Sampling(seed=seed))
    images = engine.decode(tokens)
    training_tokens = engine.encode(train.images.numpy())
    return (
        DigitsReport(
            images=len(classes),
            recognised=float(classifier.score(features(images), classes)),
            real_recognised=float(
                classifier.score(features(held_out.images.numpy()), held_out.labels.numpy())
            ),
            copies=share_of_copies(tokens, training_tokens),
            codebook_usage=codebook_usage(training_tokens, engine.spec.bits),
        ),
        images,
    )


def share_of_copies(tokens: npt.NDArray[np.int64], training_tokens: npt.NDArray[np.int64]) -> float:
    """Share of (B, h, w, K) tokens that occur, whole, among training tokens (n, h, w, K)."""
    known = {image.tobytes() for image in training_tokens}
    return sum(image.tobytes() in known for image in tokens) / len(tokens)


def codebook_usage(tokens: npt.NDArray[np.int64], bits: tuple[int, ...]) -> float:
    """Share of the 2^Z codes that occur in (n, h, w, K) tokens."""
    shifts = np.concatenate(([0], np.cumsum(bits)[:-1]))
    flat = (tokens << shifts).sum(axis=-1)
    return len(np.unique(flat)) / 2 ** sum(bits)
