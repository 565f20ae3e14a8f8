"""Every error that m2kit raises on purpose. The command line prints the message as one line and
exits with status 1; a message says what was expected, what was found and what to do, in the words
of the Python API.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class M2KitError(Exception):
    """Base of all errors a user can cause and mend.

    Attributes:
        option: What the command line calls the thing at fault or the cure, such as "--pad"; the
            command line alone says it. Empty where the message needs no option.
    """

    def __init__(self, message: str = "", *, option: str = "") -> None:
        """An error with a message of one line."""
        super().__init__(message)
        self.option = option


class SpecError(M2KitError):
    """An architecture that cannot exist, or that a file does not tell."""


class CheckpointError(M2KitError):
    """A checkpoint that cannot be read or does not hold a whole model."""


class FolderError(M2KitError):
    """A bundle or engine folder that is damaged, missing or of the wrong kind."""


class BackendError(M2KitError):
    """A backend, provider or package that is not available here."""


class InputError(M2KitError):
    """An image, class, token or option outside what the model takes."""


class Unavailable(M2KitError):
    """A measure that cannot be told: there are too few samples, or a network is missing."""


class TrainingInterrupted(M2KitError):
    """A training that Ctrl-C ended; what it has kept can be gone on with."""


class ParityError(M2KitError):
    """Two implementations that should agree and do not."""


def install(extra: str) -> str:
    """The command that installs an extra; m2kit is on no package index."""
    return f"pip install '.[{extra}]' in the clone of m2kit"


def require(module: str, *, extra: str, what: str) -> ModuleType:
    """The imported module, or a BackendError that names the extra to install.

    Args:
        module: Import name, for example "onnxruntime".
        extra: The extra of m2kit that brings it, for example "cpu".
        what: What needs it, as the start of a sentence.

    Raises:
        BackendError: The module is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise BackendError(
            f"{what} needs the package {missing}, which is not installed here: {install(extra)}"
        ) from error
    except (ImportError, OSError, RuntimeError, SystemError) as error:  # there, but broken
        if isinstance(error.__cause__, KeyboardInterrupt):  # as a module written in C says it
            raise KeyboardInterrupt from error
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise BackendError(f"{what} cannot load the package {module}: {reason:.200}") from error
