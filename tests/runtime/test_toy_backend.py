"""A backend is one registration: this one runs the portable graphs with the onnx package's numpy
reference, and is built, opened, verified, benched and shown by doctor without another line changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GOLDEN

import m2kit
from m2kit import contract
from m2kit.build import Build, Target
from m2kit.cli import cli
from m2kit.errors import InputError
from m2kit.precision import Precision
from m2kit.runtime import backends
from m2kit.runtime.backend import Backend, Opening, step_buffers
from m2kit.runtime.backends import BackendKind

onnx = pytest.importorskip("onnx")
NAME = "abacus"


class Abacus(Backend):
    """The Backend protocol over onnx.reference."""

    def __init__(self, folder, manifest, opening):
        self._folder, self._manifest = folder, manifest
        self._graphs = {}

    def graph(self, name):
        if name not in self._graphs:
            from onnx.reference import ReferenceEvaluator

            path = self._folder / self._manifest.graph_file(contract.PORTABLE, name)
            self._graphs[name] = ReferenceEvaluator(onnx.load(path))
        return self._graphs[name]

    def run(self, graph, feeds):
        names = [t.name for t in contract.graph_io(self._manifest.spec, graph).outputs]
        return dict(zip(names, self.graph(graph).run(names, dict(feeds)), strict=True))

    def open_steps(self, rows):
        return AbacusSteps(self, self._manifest.spec.transformer, rows)

    def active(self):
        return {"backend": NAME}

    def close(self):
        self._graphs.clear()


class AbacusSteps:
    def __init__(self, backend, spec, rows):
        inter, intra = contract.STEP_GRAPHS
        self.inter = AbacusStep(backend.graph(inter), spec, inter, contract.POSITION, rows)
        self.intra = AbacusStep(backend.graph(intra), spec, intra, contract.SUB_POSITION, rows)
        self.intra.inputs[contract.HIDDEN] = self.inter.outputs[contract.HIDDEN]


class AbacusStep:
    def __init__(self, session, spec, graph, position_name, rows):
        self._session, self._position_name = session, position_name
        self.inputs, self.outputs = step_buffers(spec, graph, rows)
        self._past = {
            t.name: np.zeros(t.fixed_shape({"R": rows}), np.float32)
            for t in contract.step_io(spec, graph).inputs
            if contract.is_past(t.name)
        }

    def reset(self):
        pass

    def run(self, position):
        names = [*self.outputs, contract.PRESENT]
        feeds = {**self.inputs, **self._past, self._position_name: np.array([position])}
        *found, self._present = self._session.run(names, feeds)
        for name, value in zip(names, found, strict=False):
            self.outputs[name][:] = value

    def commit(self, position):
        for past, new in zip(self._past.values(), self._present, strict=True):
            past[:, :, position] = new[:, :, 0]


def build(options):
    def copy(job):
        entries = {contract.PORTABLE: job.source.lowerings[contract.PORTABLE]}
        for name in [contract.WEIGHTS_FILE, *(e.file for e in entries[contract.PORTABLE].values())]:
            shutil.copyfile(job.bundle / name, job.folder / name)
        made = Build(NAME, onnx.__version__, job.bundle.name, options, Target.here())
        return job.engine(replace(job.source, lowerings=entries), made, {})

    return copy


TOY = BackendKind(
    name=NAME,
    opener=Abacus,
    builder=build,
    precisions=(Precision.FLOAT32,),
    options=frozenset({"precision"}),
    opening=frozenset(),
    ways=lambda manifest, provider: (Opening(),),
    status=lambda machine: {"abacus engines": "ready"},
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, NAME, TOY)


@pytest.fixture
def engine(registered, exported, tmp_path):
    from m2kit.engines.building import build_engine

    bundle, exact = exported(GOLDEN / "ar_tiny.ckpt", heads=4)
    manifest = build_engine(bundle, tmp_path / "a.engine", NAME)
    assert manifest.parity.passed and len(manifest.parity.checks) > 5
    return tmp_path / "a.engine", exact


def succeeds(*arguments):
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_is_opened_and_draws_what_another_backend_draws(engine):
    sampling = m2kit.Sampling(seed=3)
    with m2kit.open_engine(engine[0]) as own, m2kit.open_engine(engine[1]) as other:
        tokens = own.sample([0, 1], sampling)
        np.testing.assert_array_equal(tokens, other.sample([0, 1], sampling))
        np.testing.assert_allclose(own.decode(tokens), other.decode(tokens), atol=1e-4)
    with pytest.raises(InputError, match="threads: of the onnxruntime backend"):
        m2kit.open_engine(engine[0], threads=1)


def test_the_commands_know_it(engine, tmp_path):
    assert "abacus engines" in json.loads(succeeds("doctor", "--json"))["backends"]
    verified = json.loads(succeeds("verify", engine[0], "--json"))
    assert verified["passed"] and verified["active"] == {"backend": NAME}
    assert NAME in succeeds("inspect", engine[0])
    succeeds("generate", "--engine", engine[0], "-n", "1", "-o", tmp_path / "a.png")


def test_a_second_one_of_its_name_is_refused(registered):
    backends.register(TOY)  # the same one again, as a module that is loaded twice does
    with pytest.raises(InputError, match="a backend named abacus already; choose another name"):
        backends.register(replace(TOY, builder="elsewhere:build"))
    assert backends.BACKENDS[NAME] is TOY


def test_it_is_benched(engine):
    from m2kit.runtime.bench.benchmark import benchmark

    with m2kit.open_engine(engine[0]) as opened:
        found = benchmark(opened, m2kit.Sampling(), rounds=1)
    assert found.bandwidth_gb_s is None and set(found.stages) >= {"steps", "decode", "image"}


def test_the_command_line_builds_it(registered, exported, tmp_path):
    bundle, _ = exported(GOLDEN / "ar_tiny.ckpt", heads=4)
    engine = tmp_path / "b.engine"
    out = succeeds("build-engine", bundle, "-o", engine, "--backend", NAME, "--json")
    assert json.loads(out)["backend"] == NAME
    with m2kit.open_engine(engine) as opened:
        assert f"--backend {NAME}" in opened.info.rebuild_command(engine)
