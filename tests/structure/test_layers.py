"""The import table of docs/architecture.md."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ("toolkit", "training", "export", "engines", "runtime")
BASE = {"m2kit", "numpy"}
ROOMS = {"m2kit.runtime", "m2kit.training", "m2kit.export", "m2kit.engines"}
ALLOWED = {  # imported packages and rooms, at the top of a module
    "toolkit": BASE,
    "toolkit/cli": BASE | {"click", "rich", "m2kit.runtime"},
    "training": BASE | {"torch", "lightning", "sklearn", "PIL", "m2kit.runtime", "m2kit.training"},
    "export": BASE
    | {
        "torch",
        "onnx_ir",
        "m2kit.runtime",
        "m2kit.export",
        "m2kit.engines.graph_files",
        "m2kit.training.models",
        "m2kit.training.checkpoints",
        "m2kit.training.torch_backend",
    },
    "engines": BASE | {"onnx", "onnx_ir", "polygraphy", "m2kit.runtime", "m2kit.engines"},
    "runtime": BASE | {"PIL", "m2kit.runtime"},
    "runtime/ray_sampling.py": BASE | {"ray", "m2kit.runtime"},
    "runtime/serving": BASE | {"PIL", "starlette", "uvicorn", "h11", "m2kit.runtime"},
}
LAZY = {  # in addition, inside a function
    "toolkit/cli": ROOMS,
    "training": {"matplotlib", "tensorboardX"},
}
NAMED = {  # rooms of the parts that a table names as "module:attribute", imported when used
    "toolkit": {"m2kit.training.models", "m2kit.training.checkpoints", "m2kit.export.graphs"},
    "runtime": {"m2kit.runtime", "m2kit.engines"},
}
DOORS = {"toolkit/__init__.py": {"m2kit.runtime"}, "toolkit/__main__.py": set()}  # of the package


def room(path):
    """The row of the table that a module belongs to."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if "/".join(parts[:2]) in ALLOWED else parts[0]


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree):
    """(name, at the top) of every import of a module."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, id(node) not in inside) for name in names)


def permitted(name, allowed):
    if name.split(".")[0] in sys.stdlib_module_names:
        return True
    rooms = [f"m2kit.{folder}" for folder in FOLDERS if folder != "toolkit"]
    if any(name == room or name.startswith(room + ".") for room in rooms):
        return any(name == a or name.startswith(a + ".") for a in allowed if a.startswith("m2kit."))
    return name.split(".")[0] in allowed


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_folder_may(path):
    folder = room(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    tree.body = [node for node in tree.body if id(node) not in checking]
    for name, top in imports(tree):
        allowed = ALLOWED[folder] | (set() if top else LAZY.get(folder, set()))
        allowed |= DOORS.get(str(path.relative_to(ROOT)), set())
        assert permitted(name, allowed), f"{path}: {name} {'at the top' if top else 'inside'}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_names_parts_only_of_the_rooms_it_may(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and re.fullmatch(r"m2kit[\w.]*:\w+", str(node.value)):
            assert permitted(node.value.replace(":", "."), NAMED.get(room(path), set())), node.value


def test_the_check_itself_notices_a_forbidden_import():
    assert not permitted("torch", ALLOWED["runtime"])
    assert not permitted("m2kit.export.writer", ALLOWED["engines"])
    assert not permitted("m2kit.training.recipes.ar.x", ALLOWED["export"])
    assert permitted("m2kit.training.models.rope.rotary_table", ALLOWED["export"])
    assert permitted("m2kit.errors.M2KitError", ALLOWED["runtime"])
    assert not permitted("m2kit.runtime.engine.Engine", ALLOWED["toolkit"])
    assert not permitted("m2kit.engines.building.build_engine", ALLOWED["export"])
    assert not permitted("click", ALLOWED["toolkit"])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_prose_and_stays_one_room(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= 400


def test_tests_never_read_outside_the_project():
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert "../shared" not in path.read_text(encoding="utf-8")


def words_of_the_command_line(tree):
    """Options of the command line in a module's texts, outside commands in backticks, prose and
    what an error keeps for the command line (`option=`)."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # docstrings, also of attributes
    kept = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "option"
        for part in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            prose |= set(map(id, parts))  # seen as a whole
            text = "{}".join(str(part.value) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in prose | kept:
            yield from re.findall(
                r"(?<![\w-])--?[a-z][a-z-]*\b", re.sub(r"`m2kit [^`]*`", "", text)
            )


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_library_speaks_in_words_of_its_own_and_not_of_the_command_line(folder):
    found = {
        (path.name, option)
        for path in modules()
        if room(path) == folder
        for option in words_of_the_command_line(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found <= {  # those that write commands, what an interrupt says, options of others
        ("loop.py", "--resume"),
        ("machine.py", "-q"),
        ("manifest.py", "-o"),
        ("process.py", "-m"),
        ("build.py", "--image-size"),
        ("build.py", "--compute-capability"),
        ("manifest.py", "--backend"),
        ("status.py", "--system-site-packages"),
    }
