"""Amounts of energy, and how they are known. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

KWH_J: Final = 3.6e6
"""Joules of a kilowatt-hour."""


class EnergySource(StrEnum):
    """How a number of joules is known; `docs/energy.md` has the formulae."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    MIXED = "mixed"


@dataclass(frozen=True)
class Energy:
    """What something has used since it began."""

    joules: float
    source: EnergySource


def joined(*sources: EnergySource | None) -> EnergySource | None:
    """How a sum is known whose parts are known so; None where there is none."""
    found = {source for source in sources if source is not None}
    if len(found) > 1:
        return EnergySource.MIXED
    return found.pop() if found else None


def in_words(kwh: float, source: EnergySource | None = EnergySource.MEASURED) -> str:
    """Such as `1.24 kWh`, `0.31 Wh (estimated)`."""
    amount = f"{kwh:,.2f} kWh" if kwh >= 1 else f"{kwh * 1000:.{1 if kwh >= 0.1 else 2}f} Wh"
    return amount if source is EnergySource.MEASURED else f"{amount} ({source or 'unknown'})"
