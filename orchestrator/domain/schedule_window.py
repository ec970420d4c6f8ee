"""The window of what a schedule creates. Pure."""

from __future__ import annotations

from datetime import datetime

from orchestrator.domain.admission import hours_of
from orchestrator.domain.windows import Window
from orchestrator.spec.hours import zone
from orchestrator.spec.models import RunSpec
from orchestrator.spec.sweep import SweepSpec

Spec = RunSpec | SweepSpec


def window_of(spec: Spec) -> Window | None:
    """When what the spec describes may execute; None where nothing limits that."""
    base = spec.base if isinstance(spec, SweepSpec) else spec
    hours = hours_of(tuple(base.window), None, None) if base.window else None
    return hours.window if hours is not None else None


def windowed(spec: Spec, cron: str | None, at: datetime | None, until: str, tz: str) -> Spec:
    """The spec, executing from each fire until a time of day only. One that fires once executes from the same
    time on, on every day after it, until it has ended."""
    if cron is None:
        assert at is not None
        local = at.astimezone(zone(tz))
        cron = f"{local.minute} {local.hour} * * *"
    base = spec.base if isinstance(spec, SweepSpec) else spec
    window = {"cron": cron, "until": until, "tz": tz}
    base = RunSpec.model_validate({**base.model_dump(), "window": window})
    return spec.model_copy(update={"base": base}) if isinstance(spec, SweepSpec) else base
