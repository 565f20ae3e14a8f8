"""Published checkpoints: files of the Hugging Face hub, downloaded into its usual cache.

An address is hf://OWNER/REPO/FILE[@REVISION]. huggingface_hub does the work, and is told by its own
environment (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN) what users of it expect
to tell it once. Two things it does not do are done here. It takes any bytes of the right length, so
that every file, also one that is in the cache already, is held against the hash under which the hub
keeps it. And it tries for minutes where there is no network. Nothing here needs torch.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from m2kit.errors import CheckpointError, InputError, require
from m2kit.hashes import has_sha256
from m2kit.progress import Begin, silent

HUB = "hf://"  # begins an address
_FORM = f"{HUB}OWNER/REPO/FILE[@REVISION]"
_EXAMPLE = f"{HUB}TencentARC/Open-MAGVIT2-AR-B-256-resolution/AR_256_B.ckpt"
_ADDRESS = re.compile(HUB + r"([\w.-]+/[\w.-]+)/([^\\]+?)(?:@([^@\\]+))?", re.ASCII)
_ANSWER_SECONDS = 8.0  # a hub that has not answered by then cannot be reached
_MB = 10**6
_REASON_LENGTH = 200

_Answer = TypeVar("_Answer")

_REFUSALS = (  # class of huggingface_hub.errors, the narrower first, or what else is known of it
    (
        "OfflineModeIsEnabled",
        "expected it in {cache}, found nothing, and HF_HUB_OFFLINE forbids to download it; unset "
        "that, or set HF_HUB_CACHE to where it is",
    ),
    (
        "RevisionNotFoundError",
        "expected a branch, tag or commit of {page}, found no {file.revision}; leave @REVISION out "
        "for the newest",
    ),
    (
        "RemoteEntryNotFoundError",
        "expected a file of {page}, found no {file.file} in revision {file.revision}; "
        "{page}/tree/{file.revision} lists what there is",
    ),
    (
        "GatedRepoError",
        "expected leave to read {page}, found it gated ({status}); accept its terms there and set "
        "HF_TOKEN to a token of that account",
    ),
    (
        "RepositoryNotFoundError",
        "expected a repository at {page}, found none that may be read ({status}); check the name, "
        "and for a private one set HF_TOKEN",
    ),
    (
        "denied",
        "expected leave to read {page}, found it denied ({status}); set HF_TOKEN to a token that "
        "may, or unset one that is not valid",
    ),
    (
        "answer",
        "expected it from {page}, found {status} ({reason}); check the address "
        "and HF_ENDPOINT, or try again later",
    ),
    (
        "disk",
        "cannot write to {cache}: {reason}; free some space or set HF_HUB_CACHE to another folder",
    ),
    (
        "network",
        "expected it from {endpoint}, found no whole answer ({reason}); check the network and "
        "HF_ENDPOINT, or give the path of a downloaded file",
    ),
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of the hub.

    Attributes:
        repo: OWNER/REPO.
        file: Its name in the repository, with folders.
        revision: A branch, tag or commit.
    """

    repo: str
    file: str
    revision: str = "main"

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix, as pathlib has it."""
        return PurePosixPath(self.file).stem

    def __str__(self) -> str:
        """The address."""
        return f"{HUB}{self.repo}/{self.file}@{self.revision}".removesuffix("@main")


def hub_file_from_address(address: str) -> HubFile:
    """What an address names.

    Raises:
        InputError: Not of the form hf://OWNER/REPO/FILE[@REVISION].
    """
    found = _ADDRESS.fullmatch(address)
    parts = re.split("[/@]", address.removeprefix(HUB))
    if found is None or not address.isprintable() or not {"", ".", ".."}.isdisjoint(parts):
        raise InputError(f"expected {_FORM}, such as {_EXAMPLE}, found {address:.200}")
    repo, file, revision = found.groups(default="main")
    return HubFile(repo, file, revision)


def fetch(file: HubFile, begin: Begin = silent) -> Path:
    """The file's path in the hub's cache, where it is downloaded to unless it is there already;
    its bytes have the hash that the hub told.

    Args:
        file: What to fetch.
        begin: Told of each stage; a download is counted in millions of bytes.

    Raises:
        CheckpointError: The hub has no such file, does not give it, cannot be reached within ten
            seconds (or must not be, HF_HUB_OFFLINE) while the cache lacks it, or gave wrong bytes.
        BackendError: huggingface_hub is not installed.
    """
    with _hushed():
        path, hash_told = _path_and_hash(file, begin)
    begin("comparing it with the hub's hash")
    _check(file, path, hash_told)
    return path


def _path_and_hash(file: HubFile, begin: Begin) -> tuple[Path, str | None]:
    """Where the file is in the cache now, and the hash it should have, where that is known."""
    hub = _hub()
    place = {"repo_id": file.repo, "filename": file.file, "revision": file.revision}
    begin(f"asking for {file}")
    hash_told = None
    try:
        url = hub.hf_hub_url(**place)
        hash_told = _within(
            _ANSWER_SECONDS, lambda: hub.get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
        ).etag
    except Exception as error:  # of the library, of the one it stands on, and of the system
        cached = hub.try_to_load_from_cache(**place) if _may_be_cached(error) else None
        if not isinstance(cached, str):
            raise _refusal(file, error) from error
        path = Path(cached)
        begin(f"taking it from the cache ({_reason(error)})")
    else:
        try:
            path = Path(hub.hf_hub_download(**place, tqdm_class=_bar(begin, file)))
        except CheckpointError:
            raise
        except Exception as error:
            raise _refusal(file, error) from error
    return path, _hash_in_cache(path) or hash_told


def _hub(part: str = "") -> Any:
    """huggingface_hub or a module of it, with its telemetry off: it otherwise asks the hub which
    programs to tell it of. It reads this switch, as its other ones, when it is first imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return require(f"huggingface_hub{part}", extra="export", what=f"an address of {HUB}")


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """The library's warnings are not shown: it repeats what an error says, or tries again."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """What `ask` returns. A time limit of the library's is one for each of a host's addresses, and
    none for a name server that does not answer."""
    answer: concurrent.futures.Future[_Answer] = concurrent.futures.Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except concurrent.futures.TimeoutError as error:
        raise TimeoutError(f"no answer in {seconds:g} s") from error


def _bar(begin: Begin, file: HubFile) -> type:
    """What the library uses as if it were tqdm, to tell how far a download is."""

    class Bar:
        def __init__(self, total: int | None = None, initial: int = 0, **_: Any) -> None:
            self._total, self._done, self._received = total, 0, 0
            self._advance = begin("downloading", -(-total // _MB) if total else None)
            self.update(initial)

        def update(self, count: int = 1) -> None:
            """So many more bytes are here; fewer, where it begins anew."""
            self._received += max(count, 0)
            if self._total and self._received > 2 * self._total:  # the library would go on forever
                raise CheckpointError(
                    f"{file}: the connection ended early each time, and the server cannot go on "
                    "where it did; try again later"
                )
            before, self._done = self._done, self._done + count
            self._advance(-(-self._done // _MB) - -(-before // _MB))

        def _ignore(self, *_: Any, **__: Any) -> None:
            """What else it tells: bytes on the wire, texts beside the bar."""

        update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close = _ignore
        __exit__ = _ignore

        def __enter__(self) -> Any:
            return self

    return Bar


def _may_be_cached(error: Exception) -> bool:
    """Whether what the cache has is good enough: not where the hub says that there is no such
    file any more."""
    errors = _hub(".errors")
    return not isinstance(error, (errors.RevisionNotFoundError, errors.EntryNotFoundError))


def _refusal(file: HubFile, error: Exception) -> CheckpointError:
    """What a failure of the library, or below it, means to its user."""
    errors, constants = _hub(".errors"), _hub(".constants")
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = next((n for n, _ in _REFUSALS if isinstance(error, getattr(errors, n, ()))), "")
    if not kind:
        kind = "answer" if status else "network"
        if status in (401, 403):
            kind = "denied"
        elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            kind = "disk"
    text = dict(_REFUSALS)[kind].format(
        page=f"{constants.ENDPOINT}/{file.repo}",
        cache=constants.HF_HUB_CACHE,
        endpoint=constants.ENDPOINT,
        file=file,
        status=status,
        reason=_reason(error),
    )
    return CheckpointError(f"{file}: {text}")


def _reason(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_REASON_LENGTH]


def _hash_in_cache(path: Path) -> str | None:
    """The hash that the cache has of a file: a link in snapshots/ leads to blobs/HASH. None where
    the file system has no links."""
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(path))
    return None


def _check(file: HubFile, path: Path, expected: str | None) -> None:
    """Hold the bytes against the hub's hash: sha256 of what it stores as a large file, else git's
    sha1. Wrong ones leave the cache.

    Raises:
        CheckpointError: They have another, or none was told.
    """
    if expected is not None and re.fullmatch("[0-9a-f]{64}", expected):
        right, kind = has_sha256(path, expected, trust_seen=True), "sha256"
    elif expected is not None and re.fullmatch("[0-9a-f]{40}", expected):
        right, kind = _git_sha1(path) == expected, "git sha1"
    else:
        raise CheckpointError(
            f"{file}: expected a sha256 or a git hash to check {path} by, found "
            f"{expected or 'none'}; give its path if you trust the file"
        )
    if not right:
        size = path.stat().st_size
        _remove(path)
        left = f"remove {path}" if os.path.lexists(path) else "it was removed from the cache"
        raise CheckpointError(
            f"{file}: expected bytes whose {kind} is {expected}, found {size} bytes of another; "
            f"{left}; run it again"
        )


def _git_sha1(path: Path) -> str:
    """Git's hash of a small file."""
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file and what it links to, as far as that is the cache's own."""
    cache = Path(_hub(".constants").HF_HUB_CACHE).resolve()
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    for name in (blob.resolve(), blob, path):
        with contextlib.suppress(OSError):
            if cache in name.parent.resolve().parents:
                name.unlink(missing_ok=True)
