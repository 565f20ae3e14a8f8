"""Numbers that say whether generated images show their classes, and are not copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2kit.errors import InputError
from m2kit.runtime.codebook import report_of_tokens
from m2kit.runtime.drawing import draw_images
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.sampling import Sampling
from m2kit.training.datasets.crops import images_of
from m2kit.training.datasets.dataset import DataSet
from m2kit.training.evaluation.measures import near_copies, share_of_copies


@dataclass(frozen=True, slots=True)
class Report:
    """What `evaluate` measures; shares in 0..1, None where the data set has no judge.

    Attributes:
        images: Number of generated images.
        recognised: Share of generated images that the judge takes for their class: mean over
            classes.
        real_recognised: The same of held-out real images.
        near_copies: Share of generated images within a root mean square of 12 grey levels of a
            training image or its mirror image, both whole (`m2kit evaluate generation` compares
            pictures of 32 x 32, so its share may be another).
        real_near_copies: The same of held-out real images.
        copies: Share of generated images whose ids equal those of a training image.
        codebook_usage: Share of the 2^Z codes that the training images use.
    """

    images: int
    recognised: float | None
    real_recognised: float | None
    near_copies: float
    real_near_copies: float
    copies: float
    codebook_usage: float


def evaluate(
    engine: Engine, data: DataSet, *, per_class: int, seed: int
) -> tuple[Report, npt.NDArray[np.float32]]:
    """Generate images with the engine's default sampling and judge them.

    Args:
        engine: An engine of a model trained on the data set.
        data: The data set.
        per_class: Images per class.
        seed: Of the sampling.

    Returns:
        The report, and the images (classes * per_class, 3, H, W) in class order, float32 in
        [-1, 1].

    Raises:
        InputError: The model has another number of classes than the data set.
    """
    collection, transformer = data.load(), engine.spec.transformer
    known = len(collection.classes)
    if transformer is None or transformer.classes != known:
        found = f"{transformer.classes} classes" if transformer else "a tokenizer only"
        raise InputError(
            f"the data set {data.name} has {known} classes, the engine {found}; "
            "take the data set it was trained on"
        )
    size = transformer.grid[0] * engine.spec.tokenizer.strides[0]
    train, train_labels = (part.numpy() for part in images_of(collection.train, size))
    held_out, held_out_labels = (part.numpy() for part in images_of(collection.held_out, size))
    drawn = list(draw_images(engine, range(known), per_class, Sampling(seed=seed)))
    classes, tokens, images = (
        np.concatenate([getattr(part, name) for part in drawn])
        for name in ("class_ids", "tokens", "images")
    )
    training_tokens = engine.encode(train)
    order = engine.spec.tokenizer.bit_order
    codebook = report_of_tokens(training_tokens, engine.spec.vocabularies, order)
    recognised = real_recognised = None
    if data.judge is not None:
        recognise = data.judge(train, train_labels)
        recognised = _share(recognise(images), classes)
        real_recognised = _share(recognise(held_out), held_out_labels)
    of_bytes = [uint8_from_images(part) for part in (images, held_out, train)]
    report = Report(
        images=len(classes),
        recognised=recognised,
        real_recognised=real_recognised,
        near_copies=near_copies(of_bytes[0], of_bytes[2]),
        real_near_copies=near_copies(of_bytes[1], of_bytes[2]),
        copies=share_of_copies(tokens, training_tokens),
        codebook_usage=codebook.usage,
    )
    return report, images


def _share(found: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> float:
    """Mean over the classes that are expected."""
    right = found == expected
    return float(np.mean([right[expected == label].mean() for label in np.unique(expected)]))
