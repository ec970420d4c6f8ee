"""Which of Ray's nodes count."""

from typing import Any

from orchestrator.cluster.ray_gateway import newest


def raw(ray_id: str, alive: bool = True, **labels: str) -> dict[str, Any]:
    resources = {"CPU": 2.0, "memory": 5e9, "node:127.0.0.2": 1.0} if alive else {}
    return {
        "NodeID": ray_id,
        "Alive": alive,
        "NodeManagerAddress": "127.0.0.2",
        "Resources": resources,
        "Labels": {
            "ray.io/node-id": ray_id,
            **{key.replace("_", "-"): value for key, value in labels.items()},
        },
    }


def test_nodes_without_a_pool_do_not_count() -> None:
    assert newest([raw("head")]) == []


def test_resources_are_read() -> None:
    (node,) = newest([raw("1", pool="gpu", orch_node="box")])
    assert (node.name, node.pool, node.cpus, node.gpus, node.memory) == (
        "box",
        "gpu",
        2.0,
        0.0,
        5_000_000_000,
    )


def test_of_one_name_the_living_one_counts_then_the_one_that_started_last() -> None:
    dead = raw("1", alive=False, pool="p", orch_node="a", orch_started="300")
    old = raw("2", pool="p", orch_node="a", orch_started="100")
    new = raw("3", pool="p", orch_node="a", orch_started="200")
    for order in ([dead, old, new], [new, old, dead], [old, dead, new]):
        assert [node.ray_id for node in newest(order)] == ["3"]
    assert [node.ray_id for node in newest([dead, raw("0", False, pool="p", orch_node="a")])] == ["1"]


def test_names_are_sorted() -> None:
    found = newest([raw("1", pool="p", orch_node="b"), raw("2", pool="p", orch_node="a")])
    assert [node.name for node in found] == ["a", "b"]
