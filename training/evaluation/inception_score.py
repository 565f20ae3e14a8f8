"""The Inception score (arXiv 1606.03498), of sums that batches add up to: exp of the mean KL
divergence of a picture's classes from all pictures', the mean over parts of the pictures.

ADM's evaluator takes parts of 5,000 in the order of the pictures, on which the score then depends:
class by class, a part would have few classes. Here they are shared out at random, always alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, float64, from_numpy

from m2kit.errors import Unavailable
from m2kit.training.evaluation.tally import Tally

OF_A_PART = 5000  # pictures
_CLASSES, _COUNT = "classes.", ".count"  # around the number of a part, in a tally's sums


def part_of_each(total: int, of_a_part: int) -> npt.NDArray[np.int64]:
    """The part that each picture is in, (total): at random, of sizes that differ by one at most,
    and no smaller than `of_a_part` if there are so many."""
    parts = max(1, total // of_a_part)
    found = np.empty(total, np.int64)
    order = np.random.default_rng(0).permutation(total)
    for part in range(parts):
        found[order[part * total // parts : (part + 1) * total // parts]] = part
    return found


def add_classes(tally: Tally, logits: Tensor, parts: npt.NDArray[np.int64]) -> None:
    """Add the sums of which the score is made.

    Args:
        tally: Where to.
        logits: (B, C) of any float type.
        parts: (B), the part that each picture is in.
    """
    logs = logits.detach().to("cpu", float64).log_softmax(1)
    shares = logs.exp()
    information = (shares * logs).nansum(1)
    for part in np.unique(parts):
        own, name = from_numpy(parts == part), f"{_CLASSES}{part}"
        tally.add(f"{name}{_COUNT}", int(own.sum()))
        tally.add(f"{name}.shares", shares[own].sum(0).numpy())
        tally.add(f"{name}.information", float(information[own].sum()))


def inception_score(tally: Tally) -> float:
    """Of what `add_classes` has added: 1 up to the number of classes.

    Raises:
        Unavailable: Nothing was, as the network has no classes.
    """
    values = []
    for name in [
        name for name in tally.sums if name.startswith(_CLASSES) and name.endswith(_COUNT)
    ]:
        count, part = tally.sums[name], name.removesuffix(_COUNT)
        shares = tally.sums[f"{part}.shares"] / count
        entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
        values.append(np.exp(float(tally.sums[f"{part}.information"] / count) + entropy))
    if not values:
        raise Unavailable("the feature network gives no classes")
    return float(np.mean(values))
