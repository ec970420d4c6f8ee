"""The kinds of value that stand in a spec: names, sizes, durations, environment variables, free text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
ENV_PATTERN: Final = r"[A-Za-z_][A-Za-z0-9_]{0,199}"
SIZE_PATTERN: Final = r"[0-9]{1,15}(?:\.[0-9]{1,9})? *(?:[kKmMgGtT][iI]?)?[bB]?"
DURATION_PATTERN: Final = r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})? *(?:s|min|m|h|d) *)+"
METRIC_PATTERN: Final = r"[A-Za-z0-9_\-. :/]{1,250}"

_NAME_WORDS: Final = (
    "a name of at most 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
)
_ENV_WORDS: Final = "a name of letters, digits and '_', not beginning with a digit"
_SIZE_WORDS: Final = "a size such as 6GiB or 500MB"
_DURATION_WORDS: Final = "a duration such as 90s, 30m, 8h, 1h30m or 2d"
_METRIC_WORDS: Final = "the name of a metric, such as val/loss"
_PART: Final = re.compile(r"([0-9.]+) *(s|min|m|h|d)")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SECRET: Final = re.compile(
    r"(?:.*_)?(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)", re.IGNORECASE
)
_MAX_SECONDS: Final = 10 * 366 * 86400.0


@dataclass(frozen=True)
class Words:
    """Annotation: what is expected here, for people."""

    text: str
    free: bool = False
    """Any text, where numbers stay as they were written."""


def parse_size(value: Any) -> Any:
    """Bytes from a text such as `6GiB` (powers of 1024) or `500MB` (of 1000); other values as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not re.fullmatch(SIZE_PATTERN, text):
        raise ValueError(f"expected {_SIZE_WORDS}, got {value[:40]!r}")
    unit = text.lstrip("0123456789. ").upper().removesuffix("B")
    power = "KMGT".index(unit[0]) + 1 if unit else 0
    return int(float(text.rstrip("kKmMgGtTiIbB ")) * (1024 if unit.endswith("I") else 1000) ** power)


def parse_duration(value: Any) -> Any:
    """Seconds from a text such as `90s`, `30m` or `1h30m`; other values as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"expected {_DURATION_WORDS}, got {value[:40]!r}")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def _matching(pattern: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"expected {words}, got {value[:70]!r}")
        return value

    return AfterValidator(check)


def _text_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


def _as_written(value: Any) -> Any:
    """Numbers and truth values as text. Specs that come as YAML keep the user's own spelling before this."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("expected text without NUL characters")
    return value


def _on_node(value: str) -> str:
    if not value.startswith(("/", "~")):
        raise ValueError(f"expected an absolute path on the node, or one from ~, got {value[:70]!r}")
    return value


def _env_name(value: str) -> str:
    if value.upper().startswith("ORCH_"):
        raise ValueError("names that begin with ORCH_ are set by orch itself")
    if _SECRET.fullmatch(value):
        raise ValueError("looks like a secret, and specs are stored and shown: set it on the node instead")
    return value


Name = Annotated[str, _matching(NAME_PATTERN, _NAME_WORDS), Words(_NAME_WORDS), _text_schema(NAME_PATTERN)]
EnvName = Annotated[
    str,
    _matching(ENV_PATTERN, _ENV_WORDS),
    AfterValidator(_env_name),
    Words(_ENV_WORDS),
    _text_schema(ENV_PATTERN),
]
MetricName = Annotated[
    str, _matching(METRIC_PATTERN, _METRIC_WORDS), Words(_METRIC_WORDS), _text_schema(METRIC_PATTERN)
]
Text = Annotated[str, AfterValidator(_without_nul), Field(min_length=1, max_length=4096), Words("text")]
NodePath = Annotated[
    str,
    AfterValidator(_without_nul),
    AfterValidator(_on_node),
    Field(max_length=4096),
    Words("an absolute path on the node, or one from ~"),
]
FreeText = Annotated[
    str,
    BeforeValidator(_as_written),
    AfterValidator(_without_nul),
    Field(max_length=5000),
    Words("text of at most 5000 characters", free=True),
    WithJsonSchema({"type": ["string", "number", "boolean"], "maxLength": 5000}),
]
ByteSize = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0, le=2**60),
    Words(_SIZE_WORDS),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{SIZE_PATTERN}$"}]}
    ),
]
"""Bytes."""
Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(gt=0, le=_MAX_SECONDS),
    Words(_DURATION_WORDS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{DURATION_PATTERN}$"},
            ]
        }
    ),
]
