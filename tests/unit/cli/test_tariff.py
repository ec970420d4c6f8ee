"""`orch tariff`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.messages import TariffView
from orchestrator.spec.tariff import TariffBand, TariffSpec
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import FakeController

BANDS = [
    TariffBand(hours="22:00-06:00", price=0.17),
    TariffBand(hours="00:00-24:00", days="sat-sun", price=0.2),
]
SPEC = TariffSpec(tz="Europe/Paris", default=0.27, bands=BANDS)


def test_a_tariff_is_shown_with_the_price_of_the_moment(fake: FakeController, orch: Orch) -> None:
    fake.tariff = TariffView(tariff=SPEC, price=0.17, until=datetime.now(UTC) + timedelta(hours=2))
    lines = [line.split() for line in orch("tariff").out.splitlines()]
    assert lines[1] == ["22:00-06:00", "every", "day", "0.17", "EUR/kWh"]
    assert lines[2] == ["00:00-24:00", "sat,", "sun", "0.2", "EUR/kWh"]
    assert lines[3] == ["else", "-", "0.27", "EUR/kWh"]
    assert lines[4][:4] == ["now", "0.17", "EUR/kWh", "until"]
    assert orch("tariff", "--json").json["tariff"]["default"] == 0.27


def test_a_file_is_set_and_taken_away(fake: FakeController, orch: Orch, tmp_path: Path) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text("default: 0.27\ntz: Europe/Paris\nbands:\n- {hours: 22:00-06:00, price: 0.17}\n")
    assert "22:00-06:00" in orch("tariff", "set", str(file)).out
    assert fake.tariff.tariff == SPEC.model_copy(update={"bands": BANDS[:1]})
    assert "no tariff" in orch("tariff", "remove").out
    assert fake.tariff.tariff is None


def test_a_wrong_file_is_told_by_its_lines(fake: FakeController, orch: Orch, tmp_path: Path) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text("default: 0.27\nbands:\n- {hours: 22-6, price: 0.17}\n")
    done = orch("tariff", "set", str(file))
    assert done.code == 2
    assert "tariff.yaml:3:11: bands.0.hours: expected hours such as 22:00-07:00" in done.err.replace("\n", "")
    assert fake.requests == []
