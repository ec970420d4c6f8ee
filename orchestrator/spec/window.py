"""`window:` of a spec: the hours in which a run may execute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from orchestrator.spec import hours as hour_texts
from orchestrator.spec.cron import parse_cron
from orchestrator.spec.values import Words

_DAYS_SCHEMA: Final = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _hours(text: str) -> str:
    begin, end = hour_texts.parse_hours(text)
    return f"{hour_texts.show_time(begin)}-{hour_texts.show_time(end)}"


def _days(value: Any) -> Any:
    return None if value is None else hour_texts.show_days(hour_texts.parse_days(value)) or None


def _cron(text: str) -> str:
    parse_cron(text)
    return " ".join(text.split())


def _until(text: str) -> str:
    return hour_texts.show_time(hour_texts.parse_time(text))


def _zone(name: str) -> str:
    hour_texts.zone(name)
    return name


HoursText = Annotated[str, AfterValidator(_hours), Words("hours such as 22:00-07:00")]
DaysText = Annotated[
    str | None, BeforeValidator(_days), Words("days such as mon-fri"), WithJsonSchema(_DAYS_SCHEMA)
]
CronText = Annotated[str, AfterValidator(_cron), Words("the 5 fields of cron, such as `0 22 * * mon-fri`")]
TimeText = Annotated[str, AfterValidator(_until), Words("a time of day such as 07:00")]
ZoneName = Annotated[str, AfterValidator(_zone), Words("a time zone such as Europe/Paris")]


class WindowRule(BaseModel):
    """Openings that recur: either at the same hours, or by a cron line."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    hours: HoursText | None = None
    """From when to when, such as `22:00-07:00`; an end that is not later is the next day's."""
    days: DaysText = None
    """Days on which it opens, such as `mon-fri` or `[mon, wed]`; every day when unset."""
    cron: CronText | None = None
    """In place of `hours`: it opens whenever this line fires, such as `0 22 * * mon-fri`."""
    until: TimeText | None = None
    """With `cron`: it closes at the first such time after it has opened."""
    tz: ZoneName = Field(default_factory=lambda: hour_texts.local_zone() or "")
    """Time zone of all this; that of the machine on which the spec is read when unset."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.hours is not None and (self.cron, self.until) != (None, None):
            raise ValueError("expected either `hours` or `cron` with `until`, got both")
        if self.hours is None and (self.cron is None or self.until is None):
            raise ValueError("expected `hours: 22:00-07:00`, or `cron` with `until`")
        if self.cron is not None and self.days is not None:
            raise ValueError("`days` goes with `hours`; the days of `cron` are in its line")
        if not self.tz:
            raise ValueError("this machine's time zone is not known: expected `tz`, such as Europe/Paris")
        return self


def _listed(value: Any) -> Any:
    """A list of mappings, from a text, a mapping, or a list of both."""
    items = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, str | Mapping | WindowRule) for item in items):
        return value
    return [{"hours": item} if isinstance(item, str) else item for item in items]


class _ShortForms:
    """JSON Schema of what :func:`_listed` takes."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(core)
        item = {"anyOf": [{"type": "string", "pattern": f"^{hour_texts.HOURS_PATTERN}$"}, whole["items"]]}
        return {"anyOf": [*item["anyOf"], {**whole, "items": item}]}


WindowRules = Annotated[
    list[WindowRule],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=32),
    Words("hours such as 22:00-07:00, or a mapping with `hours`, `days` and `tz`"),
    _ShortForms(),
]
