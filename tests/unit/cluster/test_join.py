"""What `orch join` refuses, against a controller that is only pretended."""

from __future__ import annotations

import http.server
import json
import platform
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from orchestrator import __version__
from orchestrator.cluster import machine
from orchestrator.cluster.config import load_config, save_config
from orchestrator.cluster.join import default_name, join, join_command
from orchestrator.cluster.stack import down
from orchestrator.errors import SetupError, UnauthorizedError
from orchestrator.settings import Home, write_private
from orchestrator.store.objects import open_store, store_id
from tests.unit.cluster.test_config import config

TOKEN = "t" * 43


class Controller:
    """Answers /v1/health and /v1/nodes."""

    def __init__(self, store: Path) -> None:
        self.health: dict[str, Any] = {
            "version": __version__,
            "cluster_id": "c",
            "ray_version": version("ray"),
            "python_version": platform.python_version(),
            "store_uri": store.as_uri(),
            "store_id": store_id(open_store(store), create=True),
            "ray_address": "127.16.0.1:9",
            "ray_connected": True,
        }
        self.nodes: list[dict[str, Any]] = []
        controller = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = controller.answer(self.path, self.headers.get("Authorization", ""))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        if not authorization:
            return 200, {"version": self.health["version"], "cluster_id": ""}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"kind": "unauthorized", "message": "wrong token"}
        return 200, self.health if path == "/v1/health" else self.nodes

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5.0)


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    running = Controller(tmp_path / "store")
    yield running
    running.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def refused(home: Home, controller: Controller, **options: Any) -> SetupError:
    with pytest.raises(SetupError) as caught:
        join(home, controller.url, TOKEN, "laptop", **options)
    assert load_config(home) is None, "nothing was changed"
    assert not home.token_file.exists()
    return caught.value


def test_a_wrong_token_is_told_as_such(home: Home, controller: Controller) -> None:
    with pytest.raises(UnauthorizedError, match="does not accept this token"):
        join(home, controller.url, "x" * 43, "laptop")
    with pytest.raises(UnauthorizedError, match="wants a token"):
        join(home, controller.url, "", "laptop")


@pytest.mark.parametrize(
    ("key", "other"), [("version", "9.9"), ("ray_version", "2.1.0"), ("python_version", "3.11.1")]
)
def test_versions_must_agree_to_the_patch_level(
    home: Home, controller: Controller, key: str, other: str
) -> None:
    controller.health[key] = other
    error = refused(home, controller)
    assert f"{other} there" in error.message
    assert other in (error.remedy or "")


def test_the_store_must_be_the_very_one(home: Home, controller: Controller, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store_id(open_store(other), create=True)
    assert "another store" in refused(home, controller, store_uri=str(other)).message
    missing = refused(home, controller, store_uri=str(tmp_path / "missing"))
    assert "--store" in (missing.remedy or "")
    assert not (tmp_path / "missing").exists(), "an unmounted folder is not made into a store"


def test_a_name_that_a_living_node_has_is_refused(home: Home, controller: Controller) -> None:
    with Listener() as head:
        controller.health["ray_address"] = head
        controller.nodes = [{"name": "box", "pool": "laptop", "state": "ready", "address": "10.0.0.7"}]
        error = refused(home, controller, name="box")
    assert "10.0.0.7" in error.message
    assert "--name" in (error.remedy or "")


def test_a_head_behind_a_firewall_is_told_with_its_ports(home: Home, controller: Controller) -> None:
    error = refused(home, controller)
    assert "127.16.0.1:9" in error.message
    assert "7430-7499" in (error.remedy or "")


def test_a_head_on_loopback_elsewhere_is_told(
    home: Home, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "local_address", lambda target: "192.168.1.7")
    assert "--listen" in (refused(home, controller).remedy or "")


def test_gpus_that_are_not_there_are_refused(
    home: Home, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with Listener() as head:
        controller.health["ray_address"] = head
        assert "asks for 1 GPUs" in refused(home, controller, gpus=1).message


def test_a_name_that_ray_would_not_take_is_refused(home: Home, controller: Controller) -> None:
    assert "name" in refused(home, controller, name="my box").message


def test_the_line_to_paste_keeps_the_token_out_of_arguments_and_history(home: Home) -> None:
    save_config(home, config(head_address="192.168.1.20", controller_url="http://192.168.1.20:7420"))
    write_private(home.token_file, TOKEN + "\n")
    line = join_command(home, pool="gpu")
    assert line == f" ORCH_TOKEN={TOKEN} orch join http://192.168.1.20:7420 --pool gpu"


def test_there_is_no_line_while_nobody_can_join(home: Home) -> None:
    with pytest.raises(SetupError, match="no controller"):
        join_command(home)
    save_config(home, config())
    with pytest.raises(SetupError, match="this machine only"):
        join_command(home)


def test_down_on_a_joined_machine_keeps_its_membership(home: Home) -> None:
    save_config(home, config(kind="join"))
    said: list[str] = []
    down(home, said.append)
    assert home.stack_file.exists()
    assert "orch leave" in said[-1]


@pytest.mark.parametrize(
    ("host", "name"),
    [("box", "box"), ("My_PC.lan", "My-PC"), ("-x-", "x"), ("_", "node"), ("a" * 80, "a" * 63)],
)
def test_the_host_name_becomes_a_node_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert default_name() == name


class Listener:
    """Accepts connections, as Ray's head would; its address is what the block gets."""

    def __enter__(self) -> str:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._socket.close()
