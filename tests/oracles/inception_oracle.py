"""Holds m2kit's Inception network of FID against the code of pytorch-fid and of torch-fidelity, on
random weights under the names of their files, and its Frechet distance, KID, Inception score,
precision and recall against theirs, on the same features. `make test-oracles` runs it, with those
packages in a folder of their own (see lpips_oracle.py). `--write` writes
tests/golden/inception.json, which the suite checks without them.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from doubles.random_inception import SIZE, random_inception, random_pictures  # noqa: E402

from m2kit.training.evaluation import scores  # noqa: E402
from m2kit.training.evaluation.features import (  # noqa: E402
    INCEPTION_PYTORCH_FID,
    INCEPTION_TF,
    feature_network,
)
from m2kit.training.evaluation.inception_score import add_classes, inception_score  # noqa: E402
from m2kit.training.evaluation.moments import Moments, frechet_distance  # noqa: E402
from m2kit.training.evaluation.tally import Tally  # noqa: E402
from m2kit.training.models.inception import FidInception  # noqa: E402

SEED = 0
OF_FEATURES, OF_SCORES = 1e-5, 1e-4  # relative: features are float32, and so are some scores
GOLDEN = TESTS / "golden" / "inception.json"
SHOWN = 8  # features of a picture that the golden file has


def packages():
    """pytorch_fid and torch_fidelity, with the operators that their torchvision asks for."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import pytorch_fid.fid_score
    import pytorch_fid.inception
    import torch_fidelity.feature_extractor_inceptionv3
    import torch_fidelity.metric_fid
    import torch_fidelity.metric_isc
    import torch_fidelity.metric_kid
    import torch_fidelity.metric_prc

    return pytorch_fid, torch_fidelity, library  # which forgets the operators when it goes


def features_of_pytorch_fid(package, path, images):
    """pool_3 of the package's network, whose weights come from a file in place of the network."""
    package.inception.load_state_dict_from_url = lambda *_, **__: torch.load(path)
    network = package.inception.InceptionV3().eval()
    with torch.no_grad():
        return {"pooled": network(images / 255)[0].flatten(1)}


def features_of_torch_fidelity(package, path, images):
    names = ["2048", "logits_unbiased"]
    network = package.feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "inception-v3-compat", names, feature_extractor_weights_path=path
    )
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *given: spatial.append(given[2]))
    with torch.no_grad():
        pooled, logits = network(images)
    first = spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    return {"pooled": pooled, "spatial": first, "logits": logits}


def compare_networks(pytorch_fid, torch_fidelity, write):
    shapes = {name: tuple(t.shape) for name, t in FidInception().state_dict().items()}
    images, worst, golden = random_pictures(SEED), 0.0, {"seed": SEED, "size": SIZE}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(random_inception(SEED, shapes), path)
        for name, theirs in (
            (INCEPTION_PYTORCH_FID, features_of_pytorch_fid(pytorch_fid, path, images)),
            (INCEPTION_TF, features_of_torch_fidelity(torch_fidelity, path, images)),
        ):
            ours = feature_network(name, weights=path)(images / 255)
            for part, expected in theirs.items():
                gap = (getattr(ours, part) - expected).abs().max() / expected.abs().max()
                worst = max(worst, gap.item())
                print(f"{name}, {part}: off by {gap:.1e} of {expected.abs().max():.3g}")
                golden[f"{name} {part}"] = {
                    "first": expected[:, :SHOWN].double().tolist(),
                    "norms": expected.double().norm(dim=1).tolist(),
                }
    if write:
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    return worst


def compare_scores(pytorch_fid, torch_fidelity):
    random = np.random.default_rng(SEED)
    mixing = random.standard_normal((64, 64)) / 8
    real, generated = (
        np.maximum(random.standard_normal((count, 64)) @ mixing * scale + 0.2, 0)
        for count, scale in ((900, 1.0), (700, 1.2))
    )
    moments = []
    for rows in (real, generated):
        part = Moments(64)
        part.add(torch.from_numpy(rows))
        moments.append(part)
    statistics = [
        {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)} for rows in (real, generated)
    ]
    pairs = [np.asarray(value) for part in statistics for value in part.values()]
    theirs = torch_fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    a, b = torch.from_numpy(real), torch.from_numpy(generated)
    yield "FD, torch-fidelity", frechet_distance(*moments), *theirs.values()
    found = pytorch_fid.fid_score.calculate_frechet_distance(*pairs)
    yield "FD, pytorch-fid", frechet_distance(*moments), found
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(
        a[:700], b, kid_subsets=2, kid_subset_size=700, verbose=False
    )
    yield "KID", scores.kid(a[:700], b, seed=0, subsets=2), next(iter(theirs.values()))
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(a * 3, splits=7, shuffle=False)
    tally = Tally()
    for part in range(7):
        own = slice(part * len(a) // 7, (part + 1) * len(a) // 7)
        add_classes(tally, a[own] * 3, np.full(len(a[own]), part))
    yield "IS", inception_score(tally), theirs["inception_score_mean"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        theirs = torch_fidelity.metric_prc.prc_features_to_metric(
            b, a, prc_neighborhood=3, prc_batch_size=500, verbose=False, save_cpu_ram=False
        )
    found = scores.precision_recall(a, b)
    yield "precision", found.precision, theirs["precision"]
    yield "recall", found.recall, theirs["recall"]


def main(*arguments):
    """Compare, and write the golden file if it is asked for; the exit status."""
    pytorch_fid, torch_fidelity, _library = packages()
    right = compare_networks(pytorch_fid, torch_fidelity, "--write" in arguments) <= OF_FEATURES
    for name, found, expected in compare_scores(pytorch_fid, torch_fidelity):
        gap = abs(found / expected - 1)
        print(f"{name}: {found:.9g}, theirs {expected:.9g}, off by {gap:.1e}")
        right = right and gap <= OF_SCORES
    return int(not right)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
