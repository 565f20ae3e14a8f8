"""engine.json holds every option by value: the command that an error names builds the same engine
again, and the words of options parse back to them."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from m2kit.build import BuildOptions
from m2kit.cli import cli
from m2kit.engines import building
from m2kit.engines.building import build_engine
from m2kit.manifest import ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.precision import AUTO, Precision
from m2kit.records import read_record, to_json
from m2kit.runtime.backends import BACKENDS, BackendKind, backend_named

FLOAT32, FLOAT16, INT8, INT4 = Precision
MODELS = {"ar_tiny": ("ar_tiny.ckpt", {"heads": 4}), "tokenizer_tiny": ("tokenizer_tiny.ckpt", {})}
CASES = [
    ("onnxruntime", "ar_tiny", {}),
    ("onnxruntime", "ar_tiny", {"precision": INT8}),
    ("onnxruntime", "ar_tiny", {"precision": INT4, "accept_quality": True}),
    ("onnxruntime", "ar_tiny", {"precision": INT4, "accept_quality": True, "block_size": 32}),
    ("onnxruntime", "ar_tiny", {"precision": AUTO}),
    ("onnxruntime", "tokenizer_tiny", {"precision": FLOAT32}),
    ("tensorrt", "ar_tiny", {}),
    ("tensorrt", "tokenizer_tiny", {
        "precision": FLOAT32, "batch": 2, "image_sizes": ((16, 24), (8, 8)), "opt_level": 0,
        "workspace": 64, "no_timing_cache": True,
    }),
    ("tensorrt", "tokenizer_tiny", {
        "image_sizes": ((16, 16),), "version_compatible": True, "low_memory": True,
        "hardware_compatible": "same-capability",
    }),
    ("tensorrt", "tokenizer_tiny", {
        "precision": FLOAT16, "image_sizes": ((16, 16),), "hardware_compatible": "ampere",
    }),
    ("tensorrt-rtx", "ar_tiny", {}),
    ("tensorrt-rtx", "tokenizer_tiny", {
        "precision": FLOAT32, "batch": 3, "image_sizes": ((16, 24), (8, 8)),
        "compute_capabilities": ("8.9", "8.0"),
    }),
]  # fmt: skip


def named(value):
    return " ".join(value.words()) if isinstance(value, BuildOptions) else value


@pytest.fixture
def prepared(gpu, monkeypatch):
    """A machine for a backend: a GPU where it builds for one, and speeds that vary a little."""

    def prepare(backend):
        if backend == "tensorrt":
            gpu("11.4.0.106")
        if backend == "tensorrt-rtx":
            pytest.importorskip("tensorrt_rtx")
        speeds, asked = {FLOAT32: 3.0, INT8: 2.0}, []

        def seconds(engine):
            asked.append(engine)
            return speeds[engine.info.precision] + 0.001 * len(asked)

        monkeypatch.setattr(building, "position_seconds", seconds)

    return prepare


def without_timings(build):
    """A build record without what differs from run to run."""
    assert build.seconds > 0 and build.peak_memory_bytes > 0
    tried = {name: replace(trial, position_ms=None) for name, trial in build.tried.items()}
    return replace(build, seconds=0.0, peak_memory_bytes=0, tried=tried)


@pytest.mark.parametrize(
    ("backend", "model", "options"),
    [(backend, model, BuildOptions(**options)) for backend, model, options in CASES],
    ids=named,
)
def test_the_command_that_rebuilds_an_engine_gives_the_same_one(
    backend, model, options, exported, tmp_path, monkeypatch, prepared
):
    prepared(backend)
    checkpoint, overrides = MODELS[model]
    bundle, engine = tmp_path / "my model.bundle", tmp_path / "its engine"
    shutil.copytree(exported(GOLDEN / checkpoint, **overrides)[0], bundle)
    manifest = build_engine(bundle, engine, backend, options)
    assert manifest == read_manifest(engine, ENGINE)
    assert manifest.built.options == backend_named(backend).complete(options)
    command = shlex.split(manifest.rebuild_command(engine))
    assert command[:3] == ["m2kit", "build-engine", "my model.bundle"]
    shutil.rmtree(engine)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, command[1:])
    assert result.exit_code == 0, result.stderr
    again = read_manifest(engine, ENGINE)
    assert without_timings(again.built) == without_timings(manifest.built)
    assert again.rebuild_command(engine) == manifest.rebuild_command(engine)
    assert replace(again, build=None, files={}) == replace(manifest, build=None, files={})
    if backend != "tensorrt":  # whose double writes what it knew of timings into its plans
        assert again.files == manifest.files


def test_the_cases_are_every_option_and_precision_of_every_backend():
    for backend, kind in BACKENDS.items():
        own = [options for name, _, options in CASES if name == backend]
        assert set().union(*own) == kind.options, backend
        complete = {kind.complete(BuildOptions(**options)).precision for options in own}
        assert complete == set(kind.precisions), backend


OPTIONS = st.builds(
    BuildOptions,
    precision=st.sampled_from([None, AUTO, *Precision]),
    accept_quality=st.booleans(),
    block_size=st.sampled_from([None, 32, 64, 128]),
    batch=st.none() | st.integers(1, 4096),
    image_sizes=st.lists(
        st.lists(st.integers(1, 2**16), min_size=2, max_size=3).map(tuple), max_size=3
    ).map(tuple),
    compute_capabilities=st.lists(st.from_regex(r"[0-9]{1,2}\.[0-9]", fullmatch=True)).map(tuple),
    version_compatible=st.booleans(),
    hardware_compatible=st.sampled_from([None, "ampere", "same-capability"]),
    opt_level=st.none() | st.integers(0, 5),
    workspace=st.none() | st.integers(1, 2**30),
    low_memory=st.booleans(),
    no_timing_cache=st.booleans(),
)


class Parsed(Exception):
    """Carries what the command line would build with."""


@pytest.fixture(scope="module")
def parsed():
    """What the real command line makes of words, for a backend that takes every option: a function
    that returns BuildOptions."""

    def stop(bundle, destination, backend, options, begin):
        raise Parsed(options)

    def parse(words):
        result = CliRunner().invoke(
            cli, ["build-engine", "a.bundle", "--backend", "tensorrt", *words]
        )
        assert isinstance(result.exception, Parsed), result.stderr
        return result.exception.args[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m2kit.engines.building.build_engine", stop)
        patch.setattr(BackendKind, "complete", lambda kind, options: options)
        yield parse


@settings(deadline=None)
@given(options=OPTIONS)
def test_the_words_of_options_parse_back_to_them(parsed, options):
    assert parsed(options.words()) == options
    assert read_record(BuildOptions, json.loads(json.dumps(to_json(options)))) == options
