"""Which checkpoints go, and that they go."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import NotFoundError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, points, restore
from orchestrator.store.objects import ObjectStore
from orchestrator.store.retention import choose
from orchestrator.store.runlog import RunLog, Tag
from tests.clocks import TurnedClock
from tests.unit.store.helpers import (
    RUN,
    commit,
    contents,
    log_keys,
    new_store,
    read_directory,
    writer,
)
from tests.unit.store.log_records import checkpoint
from tests.unit.store.memory_store import MemoryStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return new_store(tmp_path / "store")


def data_steps(store: ObjectStore) -> set[int]:
    """Steps that have data in the store."""
    keys = [info.key.split("/") for info in store.list(f"runs/{RUN}/data/")]
    return {int(parts[4].partition("-")[0]) for parts in keys}


class TestChoose:
    """Which checkpoints are dropped."""

    def dropped(self, losses: list[float | None], last: int, best: int, mode: str = "min") -> list[int]:
        live = [
            checkpoint(step + 2, 1, step, metrics={} if loss is None else {"loss": loss})
            for step, loss in enumerate(losses)
        ]
        return [record.step for record in choose(live, last, best, "loss", mode)]

    @pytest.mark.parametrize(
        ("losses", "last", "best", "mode", "expected"),
        [
            ([], 1, 1, "min", []),
            ([1.0], 1, 0, "min", []),
            ([3.0, 1.0, 2.0, 4.0], 1, 0, "min", [0, 1, 2]),
            ([3.0, 1.0, 2.0, 4.0], 1, 1, "min", [0, 2]),
            ([3.0, 1.0, 2.0, 4.0], 1, 1, "max", [0, 1, 2]),
            ([3.0, 1.0, 2.0, 4.0], 2, 2, "min", [0]),
            ([5.0, 1.0, 2.0, 4.0], 1, 1, "max", [1, 2]),
            ([None, None, None], 1, 2, "min", [0, 1]),
            ([None, 2.0, None], 1, 2, "min", [0]),
            ([1.0, 1.0, 1.0], 1, 1, "min", [1]),
            ([1.0, 2.0], 9, 9, "min", []),
        ],
    )
    def test_cases(
        self, losses: list[float | None], last: int, best: int, mode: str, expected: list[int]
    ) -> None:
        assert self.dropped(losses, last, best, mode) == expected

    def test_against_the_definition(self) -> None:
        rng = random.Random(3)
        for _ in range(300):
            losses = [
                rng.choice([None, rng.random(), float(rng.randrange(3))]) for _ in range(rng.randrange(9))
            ]
            last, best, mode = rng.randint(1, 4), rng.randint(0, 3), rng.choice(["min", "max"])
            dropped = set(self.dropped(losses, last, best, mode))
            kept = [step for step in range(len(losses)) if step not in dropped]
            assert kept[-last:] == list(range(len(losses)))[-last:]
            measured = [step for step, loss in enumerate(losses) if loss is not None]
            order = sorted(measured, key=lambda s: losses[s] if mode == "min" else -losses[s])  # type: ignore
            assert set(order[:best]) <= set(kept)
            assert len(kept) <= last + best

    @pytest.mark.parametrize(
        ("steps", "every", "expected"),
        [
            ([100, 200, 300, 400, 500], 200, [100, 300]),
            ([90, 190, 230, 410, 450, 500], 200, [90, 190, 450]),
            ([100, 200, 300], 1, []),
            ([100, 200, 300], 1000, [100, 200]),
            ([200, 250, 150], 200, [250]),
        ],
    )
    def test_the_first_of_every_so_many_steps_stays(
        self, steps: list[int], every: int, expected: list[int]
    ) -> None:
        live = [checkpoint(slot + 2, 1, step) for slot, step in enumerate(steps)]
        assert [record.step for record in choose(live, 1, 0, "loss", "min", every)] == expected

    def test_what_has_a_tag_stays(self) -> None:
        live = [checkpoint(slot + 2, 1, slot, tags=("paper",) if slot == 1 else ()) for slot in range(4)]
        assert [record.step for record in choose(live, 1, 0, "loss", "min")] == [0, 2]

    @pytest.mark.parametrize(("last", "best", "mode"), [(0, 1, "min"), (1, -1, "min"), (1, 1, "least")])
    def test_nonsense(self, last: int, best: int, mode: str) -> None:
        with pytest.raises(ValueError):
            choose([], last, best, "loss", mode)


class TestRetain:
    """Old checkpoints go."""

    def test_data_goes_and_the_log_stays(self, store: ObjectStore, tmp_path: Path) -> None:
        to = writer(store)
        for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)):
            commit(to, tmp_path, step, metrics={"loss": loss}, points=f"{step}\n".encode())
        assert to.retain(1, 1, "loss", "min") == [10, 30]
        assert to.retain(1, 1, "loss", "min") == []
        assert data_steps(store) == {20, 40}
        assert [(c.step, c.retired) for c in checkpoints(store, RUN)] == [
            (10, True),
            (20, False),
            (30, True),
            (40, False),
        ]
        assert len(log_keys(store)) == 6
        assert list(points(store, RUN)) == [b"10\n", b"20\n", b"30\n", b"40\n"]

    def test_data_goes_after_its_grace(self, store: ObjectStore, tmp_path: Path) -> None:
        clock = TurnedClock()
        claim = RunLog(store, RUN, clock).claim(1, node="n")
        to = CheckpointWriter(store, claim, clock=clock)
        for step in (10, 20):
            commit(to, tmp_path, step)
        assert to.retain(1, 0, "loss", "min", grace_s=60.0) == [10]
        clock.sleep(59.0)
        assert to.retain(1, 0, "loss", "min", grace_s=60.0) == []
        assert data_steps(store) == {10, 20}
        clock.sleep(1.0)
        assert to.retain(1, 0, "loss", "min", grace_s=60.0) == []
        assert data_steps(store) == {20}

    def test_a_tag_keeps_a_checkpoint_until_it_is_taken_away(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        to = writer(store)
        first, second = commit(to, tmp_path, 10), commit(to, tmp_path, 20)
        log = RunLog(store, RUN)
        log.note(lambda stamp, history: Tag(**stamp, name="paper", checkpoint=first.id))
        assert checkpoints(store, RUN)[0].tags == ("paper",)
        commit(to, tmp_path, 30)
        assert to.retain(1, 0, "loss", "min") == [20]
        log.note(lambda stamp, history: Tag(**stamp, name="paper", checkpoint=second.id))
        assert log.history().tagged("paper") is None, "a retired one cannot have a name"
        assert to.retain(1, 0, "loss", "min") == [10]
        assert data_steps(store) == {30}

    def test_a_tag_that_comes_between_choosing_and_retiring_is_honoured(self, tmp_path: Path) -> None:
        objects: dict[str, bytes] = {}
        to = writer(MemoryStore(objects))
        first = commit(to, tmp_path, 10)
        commit(to, tmp_path, 20)
        other = RunLog(MemoryStore(objects), RUN)

        def hook(operation: str, key: str, act: Any) -> object:
            if operation == "create" and key.endswith("4.json"):
                other.note(lambda stamp, history: Tag(**stamp, name="paper", checkpoint=first.id))
            return act()

        to._claim.log.store = MemoryStore(objects, hook)
        assert to.retain(1, 0, "loss", "min") == []
        assert [record.retired for record in other.history().checkpoints] == [False, False]

    def test_a_run_without_checkpoints_has_no_tags(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError, match="no checkpoints"):
            RunLog(store, RUN).note(lambda stamp, history: Tag(**stamp, name="paper"))

    def test_a_retired_step_can_be_committed_again(self, store: ObjectStore, tmp_path: Path) -> None:
        to = writer(store)
        commit(to, tmp_path, 10)
        commit(to, tmp_path, 20)
        to.retain(1, 0, "loss", "min")
        commit(to, tmp_path, 10, salt="again")
        restored = restore(store, RUN, 10, tmp_path / "out")
        assert read_directory(restored.directory) == contents(10, "again")

    def test_an_interrupted_deletion_is_finished_later(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        to = writer(store)
        for step in (10, 20, 30):
            commit(to, tmp_path, step)
        real = os.unlink

        def unlink(path: Path) -> None:
            if "optimizer" in str(path):
                raise OSError(errno.EIO, "bad")
            real(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            with pytest.raises(StoreUnavailableError):
                to.retain(1, 0, "loss", "min")
        assert data_steps(store) == {10, 20, 30}
        assert restore(store, RUN, None, tmp_path / "out").record.step == 30
        assert writer(store, 2).retain(1, 0, "loss", "min") == []
        assert data_steps(store) == {30}

    def test_leftovers_of_dead_attempts_go(self, store: ObjectStore, tmp_path: Path) -> None:
        commit(writer(store), tmp_path, 10, points=b"p\n")
        store.put(f"runs/{RUN}/data/1/15-half/model", b"half")
        store.put(f"runs/{RUN}/points/1-15-half.jsonl", b"half")
        store.put(f"runs/{RUN}/data/2/16-unknown/model", b"perhaps")
        store.put(f"runs/{RUN}/points/2-16-unknown.jsonl", b"perhaps")
        store.put(f"runs/{RUN}/data/3/17-later/model", b"not ours")
        store.put("runs/run-10/data/1/1-x/model", b"another run's")
        to = writer(store, 2)
        commit(to, tmp_path, 20)
        to.retain(5, 0, "loss", "min")
        assert data_steps(store) == {10, 16, 17, 20}
        assert len(list(store.list("runs/run-10/"))) == 1
        assert [info.key.rpartition("/")[2][:5] for info in store.list(f"runs/{RUN}/points/")] == [
            "1-10-",
            "2-16-",
        ]

    def test_nothing_unknown_goes_while_a_record_is_damaged(self, store: ObjectStore, tmp_path: Path) -> None:
        first = writer(store)
        commit(first, tmp_path, 10)
        commit(first, tmp_path, 20)
        key = log_keys(store)[2]
        data = b"".join(store.get(key))
        store.put(key, data[:-9])
        to = writer(store, 2)
        commit(to, tmp_path, 30)
        assert to.retain(1, 0, "loss", "min") == [10]
        assert data_steps(store) == {10, 20, 30}, "the damaged record may refer to files of step 10"
        commit(to, tmp_path, 40)
        assert to.retain(1, 0, "loss", "min") == [30]
        assert data_steps(store) == {10, 20, 40}
        store.put(key, data)
        assert restore(store, RUN, 20, tmp_path / "out").record.step == 20
