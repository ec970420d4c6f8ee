"""Requests for nodes, and the paths and addresses that follow from a state folder."""

from pathlib import Path

import pytest

from orchestrator.cluster import machine
from orchestrator.cluster.config import (
    NodeConfig,
    NodeRequest,
    StackConfig,
    load_config,
    save_config,
    stack_id,
    temp_dir,
)
from orchestrator.errors import SetupError
from orchestrator.settings import Home

# What Ray appends to its temporary folder for the longest of its sockets, with a process id of 7 digits.
RAY_SOCKET = "/session_2026-11-24_04-21-59_025765_4194304/sockets/plasma_store.1"
SOCKET_LIMIT = 107


def config(**changes: object) -> StackConfig:
    node = NodeConfig(name="a", pool="a", cpus=1, memory=10**9, address="127.16.0.2")
    values = {
        "kind": "controller",
        "id": "0a1b2c3d",
        "head_address": "127.26.27.1",
        "ray_port": 7422,
        "controller_url": "http://127.0.0.1:7420",
        "controller_host": "127.0.0.1",
        "controller_port": 7420,
        "store_uri": "file:///srv/store",
        "nodes": (node,),
    }
    return StackConfig.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("laptop", NodeRequest("laptop", "laptop")),
        ("gpu:cpus=4,gpus=1", NodeRequest("gpu", "gpu", cpus=4, gpus=1)),
        ("gpu: cpus=4 , gpus=0", NodeRequest("gpu", "gpu", cpus=4, gpus=0)),
        ("box1:pool=gpu,memory=2GiB", NodeRequest("box1", "gpu", memory=2 * 2**30)),
    ],
)
def test_nodes_are_read_as_they_are_written(text: str, expected: NodeRequest) -> None:
    assert NodeRequest.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "name"),
        ("gpu:cpus", "cpus"),
        ("gpu:cpus=0", "cpus"),
        ("gpu:cpus=many", "cpus"),
        ("gpu:cores=3", "cores"),
        ("gpu:name=x", "name"),
        ("gpu:memory=2 lots", "size"),
        ("bad-:cpus=1", "letter or digit"),
        ("../x", "name"),
    ],
)
def test_mistakes_name_the_part_and_the_syntax(text: str, word: str) -> None:
    with pytest.raises(SetupError) as caught:
        NodeRequest.parse(text)
    assert word in caught.value.message
    assert "cpus=N" in (caught.value.remedy or "")


def test_sockets_fit_however_long_names_are() -> None:
    path = str(temp_dir(config(), "n" * 63)) + RAY_SOCKET
    assert len(path) <= SOCKET_LIMIT


def test_state_folders_differ_in_id_and_addresses() -> None:
    first, second = stack_id(Home(Path("/home/a/orch"))), stack_id(Home(Path("/home/b/orch")))
    assert first != second
    assert machine.loopback(first, 0) != machine.loopback(second, 0)
    assert machine.loopback(first, 0) != machine.loopback(first, 1)
    assert not machine.loopback("00000000", 0).startswith("127.0.")


def test_a_configuration_survives_being_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert load_config(home) is None
    save_config(home, config())
    assert load_config(home) == config()


def test_a_damaged_configuration_says_which_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.stack_file.write_text('{"kind": "other"}')
    with pytest.raises(SetupError, match=r"stack\.json"):
        load_config(home)
