"""The command line against real processes; it is called as the unit tests call it."""

from tests.unit.cli.conftest import _clean, _terminal, client, clock, fake, orch

__all__ = ["_clean", "_terminal", "client", "clock", "fake", "orch"]
