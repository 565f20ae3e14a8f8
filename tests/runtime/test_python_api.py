"""What a Python user meets first: engines that say what they are, images in and out, mistakes."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import picture, tiny_spec
from doubles.fake_backend import FakeBackend, FakeStep
from PIL import Image

import m2kit
from m2kit import contract
from m2kit.errors import BackendError, FolderError, InputError
from m2kit.host import available_cores
from m2kit.runtime.engine import Engine
from m2kit.runtime.pictures import PILLOW_ERRORS

SPEC = tiny_spec()
RNG = np.random.default_rng(0)
TOKENS = np.zeros((1, 2, 3, 2), int)


@pytest.fixture
def engine():
    return Engine(SPEC, FakeBackend(SPEC))


def images(count=2):
    return RNG.uniform(-1, 1, (count, 3, 4, 6)).astype(np.float32)


def test_decoded_images_can_be_encoded_again(engine, monkeypatch):
    real = FakeBackend.run

    def beyond(self, graph, feeds):
        found = real(self, graph, feeds)
        return {n: 1.2 * array if n == contract.IMAGE else array for n, array in found.items()}

    monkeypatch.setattr(FakeBackend, "run", beyond)
    tokens = np.full((1, 2, 3, 2), [[3, 7]])  # all signs +1: the mean is 1, decoded to 1.2
    raw = engine.decode(tokens, clip=False)
    assert raw.max() == np.float32(1.2)
    clipped = engine.decode(tokens)
    np.testing.assert_array_equal(clipped, raw.clip(-1, 1))
    np.testing.assert_array_equal(engine.encode(clipped), tokens)


def test_pixels_arrays_and_pil_images_are_the_same_images(engine):
    pixels = RNG.integers(0, 256, (2, 4, 6, 3), np.uint8)
    floats = (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    expected = engine.encode(floats)
    pil = [Image.fromarray(image) for image in pixels]
    for same in (pixels, pixels.transpose(0, 3, 1, 2), pil, tuple(pil), floats.tolist()):
        np.testing.assert_array_equal(engine.encode(same), expected)
    np.testing.assert_array_equal(engine.encode(pil[0]), expected[:1])
    with pytest.raises(InputError, match="one size, found 3 x 4, 6 x 4"):
        engine.encode([pil[0], pil[0].resize((3, 4))])
    with pytest.raises(InputError, match="of one kind"):
        engine.encode([pil[0], floats[0]])


def test_pil_images_are_read_by_the_rule_for_files(engine, tmp_path):
    """Transparent pixels are white, whatever their hidden colour, and EXIF turns."""
    hidden = np.zeros((4, 6, 4), np.uint8)
    np.testing.assert_array_equal(
        engine.encode(Image.fromarray(hidden)), engine.encode(Image.new("RGB", (6, 4), "white"))
    )
    left = np.zeros((6, 4, 3), np.uint8)
    left[:, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: left becomes top
    Image.fromarray(left).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(engine.encode(image), engine.encode(np.rot90(left, -1)[None]))
    data = (tmp_path / "turned.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: data.index(b"IDAT") + 8])
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(InputError, match="PIL cannot read one of them"),
    ):
        engine.encode(image)
    with pytest.raises(InputError, match="found 32"):
        engine.encode(Image.new("F", (6, 4)))


@pytest.mark.parametrize("error", PILLOW_ERRORS)
def test_whatever_pil_raises_on_a_damaged_image_is_one_line(engine, monkeypatch, error):
    image = Image.new("RGB", (6, 4))

    def load():
        raise error("broken")

    monkeypatch.setattr(image, "load", load)
    with pytest.raises(InputError, match="PIL cannot read one of them"):
        engine.encode([image])


def test_tensors_of_torch_are_taken_whatever_they_are(engine):
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(images())
    expected = engine.encode(given.numpy())
    for same in (given, given.clone().requires_grad_(), list(given), given.double()):
        np.testing.assert_array_equal(engine.encode(same), expected)
    half = given.to(torch.bfloat16).requires_grad_()
    np.testing.assert_array_equal(engine.encode(half), engine.encode(half.detach().float().numpy()))
    tokens, classes = torch.from_numpy(expected), torch.tensor([0, 1])
    np.testing.assert_array_equal(engine.decode(tokens), engine.decode(expected))
    drawn = engine.sample(classes, image_numbers=torch.tensor([5, 6]))
    np.testing.assert_array_equal(drawn, engine.sample([0, 1], image_numbers=[5, 6]))
    np.testing.assert_array_equal(
        engine.quantize(torch.ones(1, 5, 2, 3))[1], np.full((1, 2, 3, 2), [3, 7])
    )
    assert torch.from_numpy(engine.decode(tokens)).shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(m2kit.to_uint8(given), m2kit.to_uint8(given.numpy()))
    with pytest.raises(InputError, match="images: numpy cannot read this Tensor"):
        engine.encode(torch.ones(2, 3, 4, 6).to_sparse())


def test_images_go_out_as_pixels_pil_images_and_files(engine, tmp_path):
    decoded = engine.decode(engine.encode(images(3)))
    pixels = m2kit.to_uint8(decoded)
    assert (pixels.shape, pixels.dtype) == ((3, 4, 6, 3), np.uint8)
    assert m2kit.to_uint8([[[[-1.0, 1.5]]] * 3])[0, 0, :, 0].tolist() == [0, 255]
    pil = m2kit.to_pil(decoded)
    assert [(image.size, image.mode) for image in pil] == [((6, 4), "RGB")] * 3
    np.testing.assert_array_equal(np.asarray(pil[1]), pixels[1])
    m2kit.save_images(tmp_path / "grid.png", decoded, columns=2)
    np.testing.assert_array_equal(picture(tmp_path / "grid.png")[:4, 8:], pixels[1])
    m2kit.save_images(str(tmp_path / "row.png"), decoded)
    assert picture(tmp_path / "row.png").shape == (4, 3 * 8 - 2, 3)


@pytest.mark.parametrize(
    ("path", "given", "options", "words"),
    [
        ("a.png", np.zeros((3, 4, 4), np.float32), {}, r"shape \(B, 3, H, W\)"),
        ("a.png", np.full((1, 3, 4, 4), np.nan), {}, "finite floats"),
        ("a.png", np.zeros((1, 3, 4, 4), np.uint8), {}, "floats in .* found uint8"),
        ("a.png", "images", {}, "shape"),
        ("a.png", np.zeros((1, 3, 4, 4)), {"columns": 0}, "columns must be a whole number from 1"),
        ("a.txt", np.zeros((1, 3, 4, 4)), {}, "ending in"),
        (None, np.zeros((1, 3, 4, 4)), {}, "path must be text"),
        ("a\0b.png", np.zeros((1, 3, 4, 4)), {}, r"that a file can have, found 'a\\x00b\.png'"),
        ("a\ud800.png", np.zeros((1, 3, 4, 4)), {}, r"that a file can have, found 'a\\ud800"),
    ],
)
def test_what_cannot_be_saved_is_one_line_and_no_file(
    path, given, options, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, FolderError), match=words):
        m2kit.save_images(path, given, **options)
    assert not list(tmp_path.iterdir())


def test_an_engine_is_closed_once_and_for_all(engine):
    backend = engine.backend
    engine.close()
    engine.close()
    assert backend.closed
    for use in (
        lambda: engine.encode(images()),
        lambda: engine.decode(np.zeros((1, 2, 3, 2), int)),
        lambda: engine.sample([0]),
        lambda: engine.backend,
    ):
        with pytest.raises(InputError, match=r"was closed; open it with m2kit\.open_engine"):
            use()
    assert "closed" in repr(engine)


def test_an_engine_cannot_be_pickled_and_says_what_to_do(engine):
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match=r"open it with m2kit\.open_engine, in each process"):
            way(engine)


def test_an_engine_says_what_it_is(engine, digits_engine):
    assert repr(engine).startswith("<m2kit.Engine a model in memory: 4 classes, 4 x 6 pixels, on ")
    with m2kit.open_engine(digits_engine) as opened:
        told = "10 classes, 32 x 32 pixels, onnxruntime float32, on "
        assert repr(opened).startswith(f"<m2kit.Engine digits: {told}")


@pytest.mark.parametrize("value", ["no", 1, None, 0.0])
def test_greedy_is_true_or_false(value):
    with pytest.raises(InputError, match="greedy must be True or False"):
        m2kit.Sampling(greedy=value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"guidance": "2"}, "guidance must be a number"),
        ({"guidance": [1.0, float("nan")]}, "guidance must be a number"),
        ({"temperature": float("inf")}, "temperature must be a number"),
        ({"temperature": {}}, "temperature must be a number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_p": np.array([[0.5, 0.5]])}, "top_p must be a number"),
        ({"top_p": []}, "top_p must be a number .* one for each sub-token, found none"),
    ],
)
def test_sampling_is_checked_when_it_is_made(options, words):
    with pytest.raises(InputError, match=words):
        m2kit.Sampling(**options)


def test_sampling_takes_numbers_of_numpy(engine):
    given = m2kit.Sampling(guidance=np.array(2.0), top_k=np.int64(3), greedy=np.bool_(True))
    expected = m2kit.Sampling(guidance=2.0, top_k=3, greedy=True)
    np.testing.assert_array_equal(engine.sample([0], given), engine.sample([0], expected))


@pytest.mark.parametrize("sampling", [{"seed": 1}, 1, "greedy"])
def test_only_a_sampling_says_how_to_draw(engine, sampling):
    for draw in (engine.sample, engine.generate):
        with pytest.raises(InputError, match=r"sampling must be an m2kit\.Sampling"):
            draw([0], sampling)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.encode({}), "shape"),
        (lambda e: e.encode([]), "shape"),
        (lambda e: e.decode([[1], [1, 2]]), "tokens: numpy cannot read this list"),
        (lambda e: e.decode(np.zeros((1, 2, 3, 2), bool)), "tokens must be integers"),
        (lambda e: e.decode(np.zeros((0, 2, 3, 2), int)), "tokens must be integers of shape"),
        (lambda e: e.sample({0: 1}), "class_ids must be a non-empty list"),
        (lambda e: e.sample([True]), "class_ids must be a non-empty list"),
        (lambda e: e.sample([0], batch=True), "batch must be a whole number"),
        (lambda e: e.sample([0], image_numbers=[-1]), "image_numbers must be"),
        (lambda e: e.score([0], "tokens"), "tokens must be integers"),
        (lambda e: e.score([0], TOKENS, advance=3), "advance must be a function, found 3"),
        (lambda e: e.decode(TOKENS, clip="no"), "clip must be True or False, found 'no'"),
        (lambda e: e.decode(TOKENS, begin=3), "begin must be a function, found 3"),
        (lambda e: e.encode(images(), begin=3), "begin must be a function, found 3"),
        (lambda e: e.quantize(np.zeros((1, 4, 2, 3))), r"latents must have shape \(B, 5, h, w\)"),
        (lambda e: e.quantize(np.full((1, 5, 2, 3), np.inf)), "finite floats"),
        (lambda e: e.quantize(None), "latents must have shape"),
    ],
)
def test_mistakes_are_one_line_in_words_of_the_api(engine, call, words):
    with pytest.raises(InputError, match=words) as caught:
        call(engine)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_size_that_needs_a_frame_has_the_option_for_the_command_line_alone(engine):
    with pytest.raises(InputError, match=r"frame the images$") as caught:
        engine.encode(np.zeros((1, 3, 4, 5), np.float32))
    assert caught.value.option == "--pad"


@pytest.mark.parametrize("threads", [0, -1, "2", 1.0, True, 100_000])
def test_threads_are_some_of_the_cores(digits_engine, threads):
    with pytest.raises(InputError, match=rf"threads must be .* 1\.\.{available_cores()} \(the cor"):
        m2kit.open_engine(digits_engine, threads=threads)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": None}, "path must be text or a pathlib.Path, found None"),
        ({"path": b"x"}, "path must be text"),
        ({"path": "x\0"}, "path must be one that a file can have"),
        ({"path": "x", "check": "no"}, "check must be True or False"),
        ({"path": "x", "begin": 3}, "begin must be a function"),
    ],
)
def test_opening_refuses_what_is_no_argument(arguments, words):
    with pytest.raises(InputError, match=words):
        m2kit.open_engine(**arguments)


class Broken(FakeBackend):
    """Computes NaN in one graph."""

    def __init__(self, graph, value=np.nan):
        super().__init__(SPEC)
        self.graph, self.value = graph, np.float32(value)

    def run(self, graph, feeds):
        found = super().run(graph, feeds)
        if graph == self.graph:
            next(iter(found.values())).flat[-1] = self.value
        return found

    def open_steps(self, rows):
        steps = super().open_steps(rows)
        step = {contract.INTER_STEP: steps.inter, contract.INTRA_STEP: steps.intra}[self.graph]
        spoil_from(step, 4 if step is steps.inter else 1, self.value)
        if step is steps.inter:  # what follows from NaN is NaN
            spoil_from(steps.intra, 0, self.value, lambda: np.isnan(step.outputs["hidden"]).any())
        return steps


def spoil_from(step: FakeStep, first, value, when=lambda: True):
    real = step.run
    if contract.HIDDEN in step.outputs:
        step.outputs[contract.HIDDEN] = np.zeros(step.outputs[contract.HIDDEN].shape, np.float64)

    def run(position):
        real(position)
        if position >= first and when():
            for array in step.outputs.values():
                array.flat[-1] = value

    step.run = run


def test_what_is_not_finite_is_an_error_that_names_the_graph():
    tokens = np.zeros((1, 2, 3, 2), int)
    with pytest.raises(BackendError, match=r"^encoder computed NaN or Inf: .*weights are damaged"):
        Engine(SPEC, Broken(contract.ENCODER)).encode(images())
    with pytest.raises(BackendError, match=r"^decoder computed NaN or Inf"):
        Engine(SPEC, Broken(contract.DECODER, np.inf)).decode(tokens)
    for value in (np.nan, np.inf, -np.inf):
        engine = Engine(SPEC, Broken(contract.INTRA_STEP, value))
        for use in (lambda e=engine: e.sample([0]), lambda e=engine: e.score([0], tokens)):
            with pytest.raises(BackendError, match=r"^intra_step computed NaN or Inf at pos.* 0:"):
                use()
    engine = Engine(SPEC, Broken(contract.INTER_STEP))
    with pytest.raises(BackendError, match=r"^inter_step computed NaN or Inf at position 4"):
        engine.sample([0], m2kit.Sampling(greedy=True))


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(m2kit) == sorted(m2kit.__all__)


def test_the_api_does_not_import_torch(digits_engine):
    script = (
        "import sys, m2kit\n"
        f"with m2kit.open_engine({str(digits_engine)!r}) as engine:\n"
        "    m2kit.to_pil(engine.decode(engine.encode(engine.decode(engine.sample([1])))))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
