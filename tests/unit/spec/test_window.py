"""`window` and `max_price` in specs, and tariffs, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import RunSpec, canonical_json, parse_spec
from orchestrator.spec import hours as hour_texts
from orchestrator.spec.hours import local_zone, parse_days, show_days
from orchestrator.spec.tariff_loading import load_tariff, parse_tariff
from orchestrator.spec.window import WindowRule

RUN = "name: a\ncommand: {argv: [x]}\n"


@pytest.fixture(autouse=True)
def _in_paris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Paris")


def window(text: str) -> list[dict[str, str]]:
    """What a spec keeps of its window."""
    spec = parse_spec(f"{RUN}window: {text}\n")
    assert spec.window is not None
    return [rule.model_dump(exclude_none=True) for rule in spec.window]


def problems(text: str) -> list[str]:
    """What is said of a spec."""
    with pytest.raises(SpecError) as caught:
        parse_spec(RUN + text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("22:00-7:00", [{"hours": "22:00-07:00", "tz": "Europe/Paris"}]),
        ("{hours: '22:00 - 07:00', tz: UTC}", [{"hours": "22:00-07:00", "tz": "UTC"}]),
        (
            "{hours: 22:00-07:00, days: [mon, wed], tz: UTC}",
            [{"hours": "22:00-07:00", "days": "mon, wed", "tz": "UTC"}],
        ),
        (
            "{hours: 00:00-24:00, days: sat-mon, tz: UTC}",
            [{"hours": "00:00-24:00", "days": "sat-mon", "tz": "UTC"}],
        ),
        ("{hours: 1:00-2:00, days: mon-sun, tz: UTC}", [{"hours": "01:00-02:00", "tz": "UTC"}]),
        (
            "{cron: 0  22 * * Mon-Fri, until: 7:00}",
            [{"cron": "0 22 * * Mon-Fri", "until": "07:00", "tz": "Europe/Paris"}],
        ),
        (
            "[1:00-2:00, {cron: 0 22 * * *, until: 22:00, tz: UTC}]",
            [
                {"hours": "01:00-02:00", "tz": "Europe/Paris"},
                {"cron": "0 22 * * *", "until": "22:00", "tz": "UTC"},
            ],
        ),
    ],
)
def test_all_forms(text: str, kept: list[dict[str, str]]) -> None:
    assert window(text) == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("window: 22-7", "spec:3:9: window.0.hours: expected hours such as 22:00-07:00, got '22-7'"),
        (
            "window: [1:00-2:00, 3:00-3:00]",
            "spec:3:21: window.1.hours: expected an end that differs from the begin",
        ),
        (
            "window:\n  hours: 1:00-2:00\n  days: mon-fry",
            "spec:5:9: window.0.days: expected days such as mon-fri",
        ),
        (
            "window: {hours: 1:00-2:00, tz: Mars}",
            "spec:3:32: window.0.tz: expected a time zone such as Europe/Paris",
        ),
        (
            "window: {cron: 0 25 * * *, until: 7:00}",
            "spec:3:16: window.0.cron: in the hour '25': expected 0 to 23",
        ),
        (
            "window: {cron: 0 2 * * *}",
            "spec:3:9: window.0: expected `hours: 22:00-07:00`, or `cron` with `until`",
        ),
        ("window: {hours: 1:00-2:00, until: 3:00}", "spec:3:9: window.0: expected either `hours` or `cron`"),
        ("window: {cron: 0 2 * * *, until: 3:00, days: mon}", "spec:3:9: window.0: `days` goes with `hours`"),
        ("window: {hour: 1:00-2:00}", "spec:3:10: window.0.hour: unknown key; did you mean `hours`?"),
        ("window: []", "spec:3:1: window: expected hours such as 22:00-07:00, or a mapping"),
        ("window: 5", "spec:3:9: window.0.hours: expected hours such as 22:00-07:00, got 5"),
        ("max_price: cheap", "spec:3:12: max_price: expected a number of at least 0, got 'cheap'"),
        ("max_price: -1", "spec:3:12: max_price: expected a number of at least 0, got -1"),
    ],
)
def test_mistakes_have_their_places(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


def test_what_was_read_means_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(f"{RUN}window: 22:00-07:00\nmax_price: 0.2\n")
    sent = canonical_json(spec)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert RunSpec.model_validate_json(sent) == spec
    assert "Europe/Paris" in sent


def test_overrides_set_windows() -> None:
    spec = parse_spec(RUN, overrides=["window=22:00-07:00", "max_price=0.15"])
    assert spec.window == [WindowRule(hours="22:00-07:00", tz="Europe/Paris")]
    assert spec.max_price == 0.15
    inner = parse_spec(f"{RUN}window: {{hours: 1:00-2:00}}\n", overrides=["window.days=fri"])
    assert inner.window == [WindowRule(hours="01:00-02:00", days="fri", tz="Europe/Paris")]


def test_the_zone_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_zone() == "Europe/Paris"
    monkeypatch.setenv("TZ", ":Asia/Tokyo")
    assert local_zone() == "Asia/Tokyo"
    monkeypatch.delenv("TZ")
    link, name = tmp_path / "localtime", tmp_path / "timezone"
    monkeypatch.setattr(hour_texts, "_ZONE_LINK", link)
    monkeypatch.setattr(hour_texts, "_ZONE_NAME", name)
    assert local_zone() == "UTC", "as the C library has it"
    (tmp_path / "zoneinfo" / "Australia").mkdir(parents=True)
    (tmp_path / "zoneinfo" / "Australia" / "Lord_Howe").touch()
    link.symlink_to(tmp_path / "zoneinfo" / "Australia" / "Lord_Howe")
    assert local_zone() == "Australia/Lord_Howe"
    link.unlink()
    link.write_bytes(b"TZif")
    assert local_zone() is None
    with pytest.raises(SpecError, match="this machine's time zone is not known"):
        window("22:00-07:00")
    name.write_text("America/Havana\n")
    assert window("22:00-07:00")[0]["tz"] == "America/Havana"


@pytest.mark.parametrize("text", ["mon", "mon-fri", "mon, wed", "sat-mon", "mon-wed, fri", "sun, tue"])
def test_days_are_told_as_they_are_written(text: str) -> None:
    assert parse_days(show_days(parse_days(text))) == parse_days(text)


def test_tariffs(tmp_path: Path) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text("default: 0.3\nbands:\n- {hours: 22:00-6:00, days: mon-fri, price: 0.1}\n")
    tariff = load_tariff(file)
    assert (tariff.currency, tariff.tz, tariff.default) == ("EUR", "Europe/Paris", 0.3)
    assert tariff.bands[0].model_dump() == {"hours": "22:00-06:00", "days": "mon-fri", "price": 0.1}
    with pytest.raises(SpecError) as caught:
        parse_tariff("defaults: 1\nbands:\n- {hours: 22-6, price: x}\n")
    assert [str(problem) for problem in caught.value.problems] == [
        "tariff:1:1: default: missing; expected a price per kWh such as 0.27",
        "tariff:1:1: defaults: unknown key; did you mean `default`?",
        "tariff:3:11: bands.0.hours: expected hours such as 22:00-07:00, got '22-6'",
        "tariff:3:24: bands.0.price: expected a price per kWh such as 0.27, got 'x'",
    ]
