"""Holds m2kit's LPIPS against the lpips package's own, on VGG-16 with random weights and on both
heads: random ones and those that the package ships. `make test-oracles` runs it, with lpips and
torchvision in a folder of their own: beside a CPU torch, torchvision's operators fail to load, and
then lightning cannot be imported either. `--write` writes tests/golden/lpips.json, which the suite
checks without them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from doubles.random_lpips import SHAPE, random_lpips  # noqa: E402

from m2kit.training.models.perceptual import PerceptualNetwork  # noqa: E402

SEED, TOLERANCE = 0, 1e-6
GOLDEN = TESTS / "golden" / "lpips.json"


def lpips_package():
    """The package, with the two operators that its torchvision asks for."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lpips

    return lpips, library  # which forgets the operators when it goes


def theirs(lpips, features, heads):
    """The package's network in float64; `heads` None are those that it ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how it calls torchvision is out of date
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).double()
    state = network.state_dict()
    for name in state:
        if name.startswith("net."):
            state[name] = features[f"features.{name.split('.', 2)[2]}"]
        elif heads is not None and name.startswith("lin"):
            state[name] = heads[name.replace("lins.", "lin")]
    network.load_state_dict(state)
    return network


def ours(features, heads):
    """m2kit's network in float64, of the same weights."""
    network = PerceptualNetwork().double()
    state = network.state_dict()
    for name in state:
        if name.startswith("net."):
            state[name] = features[f"features.{name.split('.', 2)[2]}"]
        elif name.startswith("lin"):
            state[name] = heads[name]
    network.load_state_dict(state)
    return network


def outcome(network, images, others):
    """Distances of the pairs, and the norm of their sum's gradient at the second pictures."""
    others = others.clone().requires_grad_()
    distances = network(images, others).flatten()
    distances.sum().backward()
    return [*distances.tolist(), others.grad.norm().item()]


def main(*arguments):
    """Compare, and write the golden file if it is asked for; the exit status."""
    lpips, _library = lpips_package()
    features, heads, images, others = random_lpips(SEED)
    worst = 0.0
    for chosen in (heads, None):
        network = theirs(lpips, features, chosen)
        used = {name: t for name, t in network.state_dict().items() if name.startswith("lin")}
        expected = outcome(network, images, others)
        found = outcome(ours(features, used), images, others)
        gaps = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
        worst = max(worst, *gaps)
        print(f"{'random' if chosen else 'shipped'} heads: {expected}, off by {max(gaps):.1e}")
        if chosen and "--write" in arguments:
            *distances, norm = expected
            content = {"seed": SEED, "shape": SHAPE, "distances": distances, "gradient_norm": norm}
            GOLDEN.write_text(json.dumps(content, indent=2) + "\n")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
