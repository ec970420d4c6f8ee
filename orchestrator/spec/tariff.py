"""What electricity costs by the hour, as people write it down."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.spec import hours as hour_texts
from orchestrator.spec.values import Text, Words
from orchestrator.spec.window import DaysText, HoursText, ZoneName

Price = Annotated[float, Field(ge=-1000, le=1000), Words("a price per kWh such as 0.27")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TariffBand(_Model):
    """Hours with a price of their own."""

    hours: HoursText
    """From when to when, such as `22:00-06:00`."""
    days: DaysText = None
    """Days on which they begin, such as `mon-fri`; every day when unset."""
    price: Price
    """For one kWh."""


class TariffSpec(_Model):
    """A tariff: what a kWh costs at which hours."""

    currency: Annotated[Text, Field(max_length=8)] = "EUR"
    """In which prices are."""
    tz: Annotated[ZoneName, Field(min_length=1)] = Field(
        default_factory=lambda: hour_texts.local_zone() or "UTC"
    )
    """Time zone of the hours; that of the machine on which the file is read when unset."""
    default: Price
    """Price of a kWh at all other hours."""
    bands: Annotated[list[TariffBand], Field(max_length=64)] = Field(default_factory=list)
    """Where several hold, the first one counts."""
