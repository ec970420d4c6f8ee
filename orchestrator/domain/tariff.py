"""What electricity costs at which hour. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from orchestrator.domain.windows import Window, both, daily, either, open_at, openings, outside
from orchestrator.spec.tariff import TariffSpec

HOUR_S = 3600.0


@dataclass(frozen=True)
class Band:
    """Hours with a price of their own."""

    window: Window
    price: float
    """For one kWh, in the tariff's currency."""


@dataclass(frozen=True)
class Tariff:
    """Prices by local time. Where bands overlap, the first one counts."""

    bands: tuple[Band, ...]
    default: float
    """The price of a kWh at all other hours."""
    currency: str
    tz: str

    @classmethod
    def of(
        cls, bands: Iterable[tuple[str, str | None, float]], default: float, currency: str, tz: str
    ) -> Tariff:
        """From (hours, days, price) such as ("22:00-06:00", "mon-fri", 0.17). Raises ValueError."""
        made = []
        for hours, days, price in bands:
            start, _, end = hours.partition("-")
            made.append(Band(daily(start.strip(), end.strip(), days, tz), price))
        return cls(tuple(made), default, currency, tz)

    def price(self, instant: datetime) -> float:
        """Of one kWh at an aware instant."""
        prices = (band.price for band in self.bands if open_at(band.window, instant))
        return next(prices, self.default)

    def cost(self, kwh: float, begin: datetime, end: datetime) -> float:
        """Of this energy, used evenly from `begin` to `end`."""
        return kwh * self.mean_price(begin, end)

    def mean_price(self, begin: datetime, end: datetime) -> float:
        """Of one kWh that is used evenly from `begin` to `end`; at `begin` where that is the end."""
        if end <= begin:
            return self.price(begin)
        total = sum(
            price * (until - since).total_seconds() for since, until, price in self.pieces(begin, end)
        )
        return total / (end - begin).total_seconds()

    def pieces(self, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, float]]:
        """[begin, end) cut where the price may change: (from, until, price), in order."""
        edges = {begin, end}
        for band in self.bands:
            edges.update(edge for span in openings(band.window, begin, end) for edge in span)
        ordered = sorted(edges)
        for since, until in pairwise(ordered):
            yield since, until, self.price(since)

    def cheaper_than(self, max_price: float) -> Window | None:
        """When a kWh costs at most this; None where that is always."""
        if all(price <= max_price for price in (self.default, *(band.price for band in self.bands))):
            return None
        cheap: list[Window] = []
        before: list[Window] = []
        for band in self.bands:
            if band.price <= max_price:
                cheap.append(_without(band.window, before))
            before.append(band.window)
        if self.default <= max_price:
            cheap.append(outside(either(before)))
        return either(cheap)


def _without(window: Window, others: list[Window]) -> Window:
    return both([window, outside(either(others))]) if others else window


def tariff_of(spec: TariffSpec) -> Tariff:
    """The tariff that a file describes."""
    bands = ((band.hours, band.days, band.price) for band in spec.bands)
    return Tariff.of(bands, spec.default, spec.currency, spec.tz)
