"""What `orch up` decides: nodes, shares of the machine, ports that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agent import ports
from orchestrator.cluster import machine, planning
from orchestrator.cluster.config import NodeRequest, StackConfig
from orchestrator.cluster.planning import plan
from orchestrator.errors import SetupError
from orchestrator.settings import Home

GIB = 2**30


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 8)
    monkeypatch.setattr(machine, "gpus", lambda: ("0", "1"))
    monkeypatch.setattr(machine, "memory", lambda: 16 * GIB)
    monkeypatch.setattr(ports, "bindable", lambda host, port: port not in (planning.RAY_PORT,))


def up(home: Home, *nodes: str, before: StackConfig | None = None, **options: str | None) -> StackConfig:
    asked = {"listen": None, "mlflow_url": None, "store_uri": None, **options}
    return plan(home, before, [NodeRequest.parse(node) for node in nodes], **asked)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_without_a_word_one_node_offers_the_whole_machine(home: Home) -> None:
    (node,) = up(home).nodes
    assert (node.name, node.pool, node.cpus, node.gpu_ids) == ("local", "local", 8, ("0", "1"))
    assert node.memory == 16 * GIB


def test_nodes_share_memory_and_never_a_gpu(home: Home) -> None:
    config = up(home, "a:gpus=1", "b:gpus=1,cpus=2", "c:gpus=0")
    assert [node.gpu_ids for node in config.nodes] == [("0",), ("1",), ()]
    assert sum(node.memory for node in config.nodes) <= 16 * GIB
    assert len({node.address for node in config.nodes} | {config.head_address}) == 4


def test_gpus_that_are_not_there_are_refused(home: Home) -> None:
    with pytest.raises(SetupError, match="asks for 3 GPUs, but 2"):
        up(home, "a:gpus=3")
    with pytest.raises(SetupError, match="1 are left"):
        up(home, "a:gpus=1", "b:gpus=2")


def test_two_nodes_of_one_name_are_refused(home: Home) -> None:
    with pytest.raises(SetupError, match="two nodes are called a") as caught:
        up(home, "a", "a")
    assert "pool=a" in (caught.value.remedy or "")


def test_default_ports_are_taken_where_they_are_free(home: Home) -> None:
    config = up(home)
    assert config.controller_port == planning.CONTROLLER_PORT
    assert config.mlflow_port == planning.MLFLOW_PORT
    assert config.ray_port != planning.RAY_PORT, "somebody has it"
    assert len({config.controller_port, config.mlflow_port, config.ray_port}) == 3


def test_ports_and_addresses_stay(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = up(home, "a:cpus=1", "b:cpus=1")
    # Everything is taken now, by the stack itself.
    monkeypatch.setattr(ports, "bindable", lambda host, port: False)
    assert up(home, before=first) == first
    assert up(home, "a:cpus=1", "b:cpus=1", before=first) == first


def test_a_node_that_stays_is_not_touched_by_one_that_comes(home: Home) -> None:
    first = up(home, "a:cpus=1,gpus=0")
    second = up(home, "a:cpus=1,gpus=0", "b:cpus=2,gpus=0", before=first)
    assert second.nodes[0] == first.nodes[0]
    third = up(home, "b:cpus=2", before=second)
    assert third.nodes == (second.nodes[1],)


def test_listening_moves_controller_and_head_and_can_be_undone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = up(home)
    shared = up(home, before=local, listen="192.168.1.20")
    assert shared.controller_url == f"http://192.168.1.20:{local.controller_port}"
    assert shared.ray_address.startswith("192.168.1.20:")
    assert shared.exposed
    assert not local.exposed
    assert shared.mlflow_url.startswith("http://127.0.0.1:"), "MLflow asks for no token, so it stays here"
    assert up(home, before=shared, listen="127.0.0.1") == local


@pytest.mark.parametrize("address", ["0.0.0.0", "::1", "mybox", "224.0.0.1"])
def test_addresses_that_others_cannot_use_are_refused(home: Home, address: str) -> None:
    with pytest.raises(SetupError):
        up(home, listen=address)


def test_mlflow_can_be_elsewhere_or_nowhere(home: Home) -> None:
    assert up(home, mlflow_url="http://box:5000/").mlflow_url == "http://box:5000"
    none = up(home, mlflow_url="none")
    assert none.mlflow_url == ""
    assert none.mlflow_port is None
    assert up(home, before=none).mlflow_port is None, "it stays as it was asked for"


def test_a_store_is_a_folder_or_an_address(home: Home) -> None:
    assert up(home).store_uri == (home.root / "store").as_uri()
    assert up(home, store_uri="/srv/store").store_uri == "file:///srv/store"
    assert up(home, store_uri="s3://bucket/x").store_uri == "s3://bucket/x"


def test_a_machine_that_has_joined_another_keeps_its_node_as_it_is(home: Home) -> None:
    joined = up(home).model_copy(update={"kind": "join"})
    assert up(home, before=joined) == joined
    for asked in ({"listen": "192.168.1.20"}, {"mlflow_url": "none"}, {"store_uri": "/srv"}):
        with pytest.raises(SetupError, match="has joined"):
            up(home, before=joined, **asked)
    with pytest.raises(SetupError, match="has joined"):
        up(home, "a", before=joined)
