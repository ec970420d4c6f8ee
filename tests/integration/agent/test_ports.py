"""Ports that nobody has."""

from __future__ import annotations

import socket

import pytest

from orchestrator.agent import ports
from orchestrator.agent.ports import PORTS, bindable, pick_port
from orchestrator.errors import SetupError


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_is_free_and_none_that_outgoing_connections_get(host: str) -> None:
    port = pick_port(host)
    assert port in PORTS
    assert bindable(host, port)


def test_a_wish_comes_true_only_where_it_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert pick_port("127.0.0.1", taken) != taken
    wish = pick_port("127.0.0.1")
    assert pick_port("127.0.0.1", wish) == wish
    assert pick_port("127.0.0.1", wish, {wish}) != wish


def test_no_free_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "bindable", lambda host, port: False)
    with pytest.raises(SetupError, match=r"127\.0\.0\.1"):
        pick_port("127.0.0.1")
