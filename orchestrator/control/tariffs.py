"""The tariff of `orch tariff`, in a small file."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from orchestrator.domain.tariff import Tariff, tariff_of
from orchestrator.errors import SetupError
from orchestrator.messages import TariffView
from orchestrator.settings import write_private
from orchestrator.spec.tariff import TariffSpec
from orchestrator.store.posix import sync_folder

_WEEK = timedelta(days=7)


class TariffBook:
    """What electricity costs. A change that returned is on disk."""

    def __init__(self, file: Path) -> None:
        """SetupError where the file cannot be understood."""
        self._file = file
        self._lock = threading.Lock()
        self._spec = _read(file)
        self._tariff = _made(self._spec)

    @property
    def spec(self) -> TariffSpec | None:
        """As it was set; None where there is none."""
        return self._spec

    def tariff(self) -> Tariff | None:
        """The same, to ask for prices."""
        return self._tariff

    def view(self, now: datetime) -> TariffView:
        """The tariff, the price now, and until when that holds."""
        tariff = self._tariff
        if tariff is None:
            return TariffView()
        price = tariff.price(now)
        pieces = tariff.pieces(now, now + _WEEK)
        until = next((since for since, _, other in pieces if other != price), None)
        return TariffView(tariff=self._spec, price=price, until=until)

    def set(self, spec: TariffSpec | None) -> None:
        """Put another one in its place; None: none."""
        with self._lock:
            if spec is None:
                self._file.unlink(missing_ok=True)
            else:
                write_private(self._file, spec.model_dump_json(indent=1) + "\n")
            sync_folder(self._file.parent)
            self._spec, self._tariff = spec, _made(spec)


def _made(spec: TariffSpec | None) -> Tariff | None:
    return None if spec is None else tariff_of(spec)


def _read(file: Path) -> TariffSpec | None:
    try:
        return TariffSpec.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SetupError(
            f"{file} cannot be understood: {error.errors(include_url=False)[0]['msg']}",
            remedy="Remove it and set the tariff again: orch tariff set FILE",
        ) from error
