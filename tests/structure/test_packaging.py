import os
import pydoc
import shutil
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
def clone(tmp_path_factory):
    """What git has of the project, in a folder named m2kit."""
    folder = tmp_path_factory.mktemp("home") / "m2kit"
    listing = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if os.path.lexists(ROOT / name) and not name.startswith(("tests/", "examples/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(clone):
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", clone.parent, clone)
    return next(clone.parent.glob("*.whl"))


@pytest.mark.parametrize("kind", ["editable", "wheel"])
def test_m2kit_is_imported_from_the_clone_its_parent_and_elsewhere(kind, clone, wheel, tmp_path):
    """A clone named m2kit must not become an empty namespace package in the folder above it."""
    what = ["--editable", clone] if kind == "editable" else [wheel]
    pip("install", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", *what)
    script = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import m2kit, m2kit.engines.building; print(m2kit.open_engine.__module__, m2kit.__file__)"
    )
    known = [path for path in sys.path if "site-packages" in path]
    isolated = {"PYTHONPATH": os.pathsep.join(known), "PATH": os.environ["PATH"]}
    for place in (clone, clone.parent, tmp_path):
        done = subprocess.run(
            [sys.executable, "-S", "-c", script],
            cwd=place, env=isolated, capture_output=True, text=True,
        )  # fmt: skip
        home = clone / "src" if kind == "editable" else tmp_path / "site"
        assert done.stdout.split() == ["m2kit.runtime.opening", f"{home}/m2kit/__init__.py"], (
            place, done.stderr,
        )  # fmt: skip


def test_src_links_every_entry_of_toolkit_and_each_other_folder():
    expected = {name: f"../../toolkit/{name}" for name in os.listdir(ROOT / "toolkit")}
    expected |= {name: f"../../{name}" for name in MAPPING if name != "toolkit"}
    expected.pop("__pycache__", None)
    package = ROOT / "src" / "m2kit"
    links = {n: os.readlink(package / n) for n in os.listdir(package) if n != "__pycache__"}
    assert links == expected, "ln -s ../../toolkit/NAME src/m2kit/"


def test_every_module_of_the_five_folders_is_in_the_wheel(wheel):
    wheel = zipfile.ZipFile(wheel)
    expected = {
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in MAPPING.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    found = {name for name in wheel.namelist() if name.endswith(".py")}
    assert found == expected
    for other in ("m2kit/imagenet_classes.txt", "m2kit/py.typed"):
        assert other in wheel.namelist()


def test_site_packages_gets_one_name(wheel):
    wheel = zipfile.ZipFile(wheel)
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"m2kit", f"m2kit-{m2kit.__version__}.dist-info"}
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "m2kit = m2kit.__main__:main" in wheel.read(entry).decode()


def test_public_names_are_what_all_says():
    errors = {n for n, value in vars(m2kit.errors).items() if n.endswith("Error") and value}
    assert set(m2kit.__all__) == errors | {
        *("Engine", "Sampling", "__version__", "open_engine"),
        *("save_images", "to_pil", "to_uint8"),
    }
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
