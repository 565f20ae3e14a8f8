import pydoc
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import m2kit

MAPPING = {
    "toolkit": "m2kit",
    "training": "m2kit/training",
    "export": "m2kit/export",
    "engines": "m2kit/engines",
    "runtime": "m2kit/runtime",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "examples/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_every_module_of_the_five_folders_is_in_the_wheel(wheel):
    expected = {
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in MAPPING.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    found = {name for name in wheel.namelist() if name.endswith(".py")}
    assert found == expected
    assert "m2kit/cli/imagenet_classes.txt" in wheel.namelist()


def test_site_packages_gets_one_name(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"m2kit", f"m2kit-{m2kit.__version__}.dist-info"}
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "m2kit = m2kit.cli:main" in wheel.read(entry).decode()


def test_public_names_are_what_all_says():
    errors = {n for n, value in vars(m2kit.errors).items() if n.endswith("Error") and value}
    assert set(m2kit.__all__) == errors | {"Engine", "Sampling", "__version__", "open_engine"}
    for name in m2kit.__all__:
        assert getattr(m2kit, name) is not None
    with pytest.raises(AttributeError):
        _ = m2kit.nothing


def test_help_shows_every_public_name_with_its_prose():
    shown = pydoc.render_doc(m2kit, renderer=pydoc.plaintext)
    for name in set(m2kit.__all__) - {"__version__"}:
        assert name in shown
    for words in ("Teacher-forced conditional logits", "Divides the logits", "Raises:"):
        assert words in shown, words
    for name in set(m2kit.__all__) - {"__version__"}:
        assert getattr(m2kit, name).__doc__


def test_importing_m2kit_stays_cheap():
    script = (
        "import sys, m2kit; print([m for m in ('numpy', 'torch', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
