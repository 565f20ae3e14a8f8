"""Holds m2kit's I3D against VideoGPT's port of it, as the package cd-fvd ships that, on random
weights: the same names and shapes, and the same logits. `make test-oracles` runs it, with that
package in a folder of its own (see lpips_oracle.py). `--write` writes tests/golden/i3d.json, which
the suite checks without it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from doubles.random_i3d import random_clip, with_random_weights  # noqa: E402

from m2kit.training.models.i3d import I3D  # noqa: E402

SEED, TOLERANCE = 0, 1e-5  # relative: ours are float32, theirs float64
GOLDEN = TESTS / "golden" / "i3d.json"
SHOWN = 8  # logits that the golden file has


def main(*arguments):
    """Compare, and write the golden file if it is asked for; the exit status."""
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    ours, theirs = with_random_weights(I3D(), SEED), InceptionI3d(400, in_channels=3)
    theirs.load_state_dict(ours.state_dict())  # which refuses other names and shapes
    theirs = theirs.double().eval().requires_grad_(requires_grad=False)
    golden, right = {"seed": SEED}, True
    for frames in (9, 17):
        clip = random_clip(frames)
        expected = theirs(clip.double())
        gap = ((ours(clip) - expected).abs().max() / expected.abs().max()).item()
        print(f"{frames} frames: off by {gap:.1e} of the largest logit")
        right = right and gap <= TOLERANCE
        first, norm = expected[0, :SHOWN].tolist(), expected.norm().item()
        golden[f"{frames} frames"] = {"first": first, "norm": norm}
    if right and "--write" in arguments:
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
