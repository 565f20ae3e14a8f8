"""What a comparison with PyTorch found, as records that say themselves whether they passed and
print themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from m2kit.errors import ParityError
from m2kit.records import Count, JsonObject, to_json
from m2kit.tolerances import ARG_MAX, KL

DIFFERENCE, MISMATCHES, BEYOND_TIES = "difference", "mismatches", "mismatches beyond ties"
_GATE_CURE = (
    "its integer weights change the model too much: build with int8 for int4, with fp32 for int8, "
    "or accept its quality, to keep it all the same"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Attributes:
        found: Measure -> value; None is no finite number.
        allowed: Measure -> the largest value that passes; measures without one are only told.
        compared: How many ids, where ids are compared.
        gate: Whether it is of the quality gate of integer weights.
    """

    found: dict[str, float | None]
    allowed: dict[str, float]
    compared: Count | None = None
    gate: bool = False

    @property
    def passed(self) -> bool:
        """Whether no measure is over its limit; what is no number is over every limit."""
        values = ((self.found.get(name), limit) for name, limit in self.allowed.items())
        return all(value is not None and value <= limit for value, limit in values)

    @property
    def text(self) -> str:
        """What was found, in words."""
        if MISMATCHES in self.found:
            count = self.found[MISMATCHES]
            if count is None:
                return "not finite"
            return f"{count:.0f} of {self.compared} ids differ" if count else "equal"
        if DIFFERENCE in self.found:
            return f"difference {_number(self.found[DIFFERENCE])}"
        return ", ".join(f"{name} {_number(value)}" for name, value in self.found.items())

    @property
    def excess(self) -> str:
        """What was found and what is allowed, in words."""
        if MISMATCHES in self.found:
            return self.text
        pairs = ((n, self.found.get(n), limit) for n, limit in self.allowed.items())
        return ", ".join(f"{n} {_number(v)}, allowed {limit:.2g}" for n, v, limit in pairs)


def measured(
    found: Mapping[str, float], allowed: Mapping[str, float], compared: int | None = None
) -> Check:
    """A check of measured values, some of which have a limit."""
    values = {name: float(v) if math.isfinite(v) else None for name, v in found.items()}
    limits = {name: float(allowed[name]) for name in found if name in allowed}
    return Check(values, limits, compared)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


@dataclass(frozen=True, slots=True)
class Quality:
    """What images become with integer weights; told, not judged.

    Attributes:
        psnr_db: Of the image of the likeliest ids at the reference's tokens.
        first_divergence: Position at which each greedy image parts from the reference's.
        psnr_greedy_db: Of the image that the engine takes by itself.
    """

    psnr_db: float
    first_divergence: tuple[int | None, ...]
    psnr_greedy_db: float


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All checks of a folder.

    Attributes:
        precision: What was compared with what; "" where nothing was.
        checks: Name -> check.
        tolerances: What counted as the same.
        quality: Of integer weights.
        devices: What it was compared on, as the backends name it.
    """

    precision: str = ""
    checks: dict[str, Check] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    devices: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether every check passed; None where nothing was compared."""
        return all(check.passed for check in self.checks.values()) if self.checks else None

    @property
    def summary(self) -> str:
        """One line."""
        if not self.checks:
            return "built, not run"
        failed = [name for name, check in self.checks.items() if not check.passed]
        count = len(self.checks)
        told = f"; failed: {', '.join(failed)}" if failed else ""
        passed = f"{count - len(failed)} of {count} checks passed"
        return f"{passed}, {self.precision}{self._worst}{told}"

    @property
    def _worst(self) -> str:
        """The largest values: of what the steps' distributions became where that is measured, since
        the tokenizer of an engine with integer weights is exact; else of all differences."""
        lossy = {name: self._largest(name) for name in (KL, ARG_MAX)}
        if any(lossy.values()):
            return "".join(f", {name} {value}" for name, value in lossy.items() if value)
        difference = self._largest(DIFFERENCE)
        return f", largest difference {difference}" if difference else ""

    def _largest(self, measure: str) -> str:
        """Over all checks that have the measure, in words; empty where none has."""
        found = [check.found[measure] for check in self.checks.values() if measure in check.found]
        if None in found:
            return _number(None)
        return _number(max(value for value in found if value is not None)) if found else ""

    @property
    def rows(self) -> dict[str, str]:
        """A line for each check."""
        return {name: check.text for name, check in self.checks.items()}

    def with_result(self) -> JsonObject:
        """As JSON, with `passed`, which is derived and not stored."""
        checks = {n: {**to_json(c), "passed": c.passed} for n, c in self.checks.items()}
        return {**to_json(self), "checks": checks, "passed": self.passed}

    def joined(self, other: ParityReport, suffix: str) -> ParityReport:
        """This report and another's checks, their names with a suffix."""
        more = {name + suffix: check for name, check in other.checks.items()}
        assert not set(more) & set(self.checks), f"two checks of one name: {sorted(more)}"
        devices = tuple(dict.fromkeys((*self.devices, *other.devices)))
        return replace(self, checks={**self.checks, **more}, devices=devices)

    def require(self, what: str, *, accept_quality: bool = False) -> None:
        """Raise ParityError, naming every failed check.

        Args:
            what: Was compared, for the message.
            accept_quality: Leave out the checks of the quality gate; all others hold.
        """
        failed = {
            name: check
            for name, check in self.checks.items()
            if not check.passed and not (accept_quality and check.gate)
        }
        if not failed:
            return
        told = "; ".join(f"{name} ({check.excess})" for name, check in failed.items())
        only_gate = all(check.gate for check in failed.values())
        cure = _GATE_CURE if only_gate else "please report this with the output of `m2kit describe`"
        raise ParityError(
            f"{what} does not agree with PyTorch: {told}; {cure}",
            option="--accept-quality" if only_gate else "",
        )
