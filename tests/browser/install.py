"""Put a headless Chromium and axe-core under a folder, for the tests of the server's page.

    python tests/browser/install.py build/browser

The browser is Playwright's own; where its host cannot be reached, that of the npm package
@sparticuz/chromium. `launch.json` tells how to start it; axe-core comes from npm, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

AXE = "axe-core@4.14.1"
CHROMIUM = "@sparticuz/chromium@147.0.0"
_UNPACK = """
const {createReadStream, createWriteStream} = require("fs");
const {pipeline} = require("stream/promises"), {createBrotliDecompress} = require("zlib");
const [from, to] = process.argv.slice(1);
pipeline(createReadStream(from), createBrotliDecompress(), createWriteStream(to));
"""


def main(folder: Path) -> None:
    """Install into a folder, which has its launch.json when it is whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        axe = _npm(AXE, Path(temporary) / "axe")
        shutil.copy(axe / "axe.min.js", folder)
        found = _playwrights(folder) or _sparticuz(Path(temporary), folder)
    (folder / "launch.json").write_text(json.dumps(found, indent=1))
    print(f"{folder}: {found['executable']}")


def _playwrights(folder: Path) -> dict[str, Any] | None:
    """Playwright's browser, unless its host cannot be reached."""
    done = subprocess.run(
        [sys.executable, "-m", "playwright", "install", "chromium-headless-shell"],
        env={
            **os.environ,
            "PLAYWRIGHT_BROWSERS_PATH": str(folder.resolve()),
            "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "20000",
        },
        capture_output=True,
        text=True,
    )
    found = [*folder.rglob("chrome-headless-shell"), *folder.rglob("headless_shell")]
    executables = [path for path in found if path.is_file()]
    if done.returncode or not executables:
        print(f"not from Playwright's host: {done.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    own = executables[0].relative_to(folder)
    return {"executable": str(own), "arguments": ["--no-sandbox"], "libraries": None}


def _sparticuz(temporary: Path, folder: Path) -> dict[str, Any]:
    """That of the npm package, with the libraries it needs."""
    packed = _npm(CHROMIUM, temporary / "chromium") / "bin"
    _unbrotli(packed / "chromium.br", folder / "chromium")
    (folder / "chromium").chmod(0o755)
    for name, place in (("swiftshader", "."), ("al2023", "al2023"), ("fonts", "fonts")):
        tar = temporary / f"{name}.tar"
        _unbrotli(packed / f"{name}.tar.br", tar)
        _untar(tar, folder / place)
    arguments = ["--no-sandbox", "--headless=new", "--no-zygote", "--single-process"]
    return {"executable": "chromium", "arguments": arguments, "libraries": "al2023/lib"}


def _npm(package: str, folder: Path) -> Path:
    """A package's files."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("expected npm, which brings axe-core; install Node.js")
    folder.mkdir()
    subprocess.run([npm, "pack", "--silent", package], cwd=folder, check=True, stdout=sys.stderr)
    _untar(next(folder.glob("*.tgz")), folder)
    return folder / "package"


def _unbrotli(source: Path, target: Path) -> None:
    node = shutil.which("node")
    assert node, "npm is there, and node is not"
    subprocess.run([node, "-e", _UNPACK, str(source), str(target)], check=True)


def _untar(source: Path, folder: Path) -> None:
    with tarfile.open(source) as tar:
        tar.extractall(folder, filter="data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
