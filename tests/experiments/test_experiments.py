"""Every experiment, at toy size: its table, plot and page, and that what is done is kept."""

import csv
import importlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, picture

torch = pytest.importorskip("torch")
ROWS = {"codebook_use": 2, "sub_tokens": 2, "lfq_vq": 2, "scaling": 1, "generalisation": 6}
FOLDER, PAGES = ROOT / "experiments", ROOT / "docs" / "experiments"
MEASURED = [name for name in ROWS if (PAGES / f"{name}.csv").exists()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders, which the experiments share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def module(monkeypatch):
    """A module of experiments/, by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def run(name, runs, output):
    """What the command of an experiment prints."""
    command = [sys.executable, FOLDER / f"{name}.py", "--data", "digits", "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--runs", runs, "-o", output], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ROWS)
def test_a_command_leaves_table_plot_and_page(name, runs, tmp_path):
    out = run(name, runs, tmp_path)
    with (tmp_path / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == ROWS[name]
    assert picture(tmp_path / f"{name}.png").std() > 1
    page = (tmp_path / f"{name}.md").read_text()
    table = out[out.index("| ") :].strip()
    assert table in page and f"python experiments/{name}.py" in page
    assert len(table.splitlines()) == 2 + ROWS[name]  # one seed: a row each


def test_a_command_called_again_trains_nothing(runs, tmp_path):
    first, again = (run("codebook_use", runs, tmp_path) for _ in range(2))
    assert "begins" not in again
    assert again.strip() == first[first.index("| ") :].strip()


def test_a_stopped_run_goes_on_and_a_done_one_is_kept(module, monkeypatch, tmp_path):
    harness = module("harness")
    bench = harness.Bench("x", "digits", tmp_path, tmp_path, quick=True)
    calls = []

    def train(settings, folder, *, resume):
        calls.append((folder.name, resume))
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text("{}")
        if not resume:
            raise KeyboardInterrupt
        return replace(done, settings=settings)

    recipe = importlib.import_module("m2kit.training.recipes.tokenizer")
    done = recipe.TokenizerTraining("digits", None, 0.5, 2.0, (), 10.0)
    monkeypatch.setattr(harness, "train_tokenizer", train)
    with pytest.raises(KeyboardInterrupt):
        bench.tokenizer(0, code_bits=4)
    results = [bench.tokenizer(0, code_bits=4).result for _ in range(2)]
    assert results[0] == results[1] and results[0]["seconds"] is None
    assert [resume for _, resume in calls] == [False, True]
    for seed, data in ((1, "digits"), (0, "others")):
        with pytest.raises(KeyboardInterrupt):
            bench.tokenizer(seed, code_bits=4, data=data)
    assert len({folder for folder, _ in calls}) == 3


def test_the_words_of_a_page_stay_when_it_is_measured_again(module, tmp_path):
    harness = module("harness")
    bench = harness.Bench("x", "digits", tmp_path, tmp_path, quick=True)
    harness._write_page(bench, "Title.\n\nProse.", "| a |", [{"seconds": 60.0}])
    page = (tmp_path / "x.md").read_text()
    assert page.startswith("# Title\n") and "| a |" in page and "1 min" in page
    (tmp_path / "x.md").write_text(page.replace("Prose", "My words") + "\nMore of them.\n")
    harness._write_page(bench, "Title.\n\nProse.", "| b |", [{"seconds": None}])
    page = (tmp_path / "x.md").read_text()
    assert "My words" in page and page.endswith("More of them.\n")
    assert "| b |" in page and "| a |" not in page


def test_a_table_has_mean_and_deviation_over_seeds(module):
    harness = module("harness")
    rows = [{"kind": k, "seed": s, "v": v} for k, s, v in (("a", 0, 1.0), ("a", 1, 3.0))]
    shown = harness.table([*rows, {"kind": "b", "v": 5.0}], ["kind"], [harness.Measure("v", "V")])
    assert shown.splitlines()[2:] == ["| a | 2.00 ± 1.41 |", "| b | 5.00 |"]


@pytest.mark.parametrize("name", MEASURED)
def test_a_published_table_is_that_of_the_rows_beside_it(name, module):
    harness, experiment = module("harness"), module(name)
    with (PAGES / f"{name}.csv").open() as file:
        rows = [
            {k: v if k in experiment.BY else float(v) for k, v in row.items() if v}
            for row in csv.DictReader(file)
        ]
    page = (PAGES / f"{name}.md").read_text()
    assert harness.table(rows, experiment.BY, experiment.MEASURES) in page
    assert (PAGES / f"{name}.png").stat().st_size < 150_000


@torch.no_grad()
def test_independent_heads_do_not_see_the_other_sub_tokens_of_their_position(module):
    heads = module("independent_heads")
    from m2kit.config import TransformerSpec
    from m2kit.training.models.transformer import Transformer

    spec = TransformerSpec(32, 2, 1, 1, 64, (2, 2), 3, (4, 4, 8), 10000.0)
    tokens = torch.zeros(1, 4, 3, dtype=torch.int64)
    other = tokens.clone()
    other[0, 1, 0] = 3  # the first sub-token of the second position
    for kind, sees in ((heads.IndependentHeads, False), (Transformer, True)):
        torch.manual_seed(0)
        network = kind(spec).eval()
        label = torch.tensor([0])
        one, two = network(label, tokens), network(label, other)
        for k in (1, 2):
            assert torch.equal(one[k][0, 1], two[k][0, 1]) is not sees
            assert not torch.equal(one[k][0, 2], two[k][0, 2])  # positions after it do see it
    assert heads.weights_per_position(spec) < spec.weights_per_position


def test_vector_quantization_takes_the_nearest_vector_and_passes_gradients(module):
    vq = module("vq")
    from m2kit.families.image import ImageTokenizerSpec

    torch.manual_seed(0)
    tokenizer = vq.VQTokenizer(ImageTokenizerSpec(32, (1, 1), 1, 4, True, "lsb"))
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    distance = torch.cdist(latent.movedim(1, -1).reshape(-1, 4), tokenizer.codebook.weight)
    tokens = tokenizer.tokens(latent, (16,))
    assert torch.equal(tokens.flatten(), distance.argmin(1))
    with torch.no_grad():
        assert torch.equal(tokenizer.tokens(tokenizer.quantize(latent), (16,)), tokens)
    tokenizer.quantize(latent).sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent))
