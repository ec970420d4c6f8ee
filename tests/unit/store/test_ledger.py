"""The ledger on a real SQLite file."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.errors import NotFoundError
from orchestrator.spec.models import Variant
from orchestrator.store import ledger as ledger_module
from orchestrator.store.ledger import Ledger
from tests.support import wait_until
from tests.unit.records import NOW, attempt, run, spec


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def test_runs_come_back_as_they_were_written(ledger: Ledger) -> None:
    full = run(
        spec=spec(tags={"team": "x"}, placement=[Variant(pool="gpu", gpus=1, memory=2**30)]),
        not_before=NOW + timedelta(seconds=3),
        restore_run="bbbb2222",
        restore_step=200,
        stop=Reason.MOVED,
        pin_pool="gpu",
    )
    with ledger.begin() as tx:
        stored = tx.add_run(full)
    with ledger.read() as tx:
        assert tx.run(full.id) == replace(full, seq=stored.seq)
        assert tx.run_by_key(full.key) == replace(full, seq=stored.seq)


def test_attempts_come_back_and_open_ones_are_found(ledger: Ledger) -> None:
    first = attempt(timings={"claim": 0.25}, device="cpu", first_step=0, message="x", reason=None)
    with ledger.begin() as tx:
        tx.add_run(run())
        tx.add_attempt(first)
        tx.add_attempt(attempt(number=2))
        tx.save_attempt(replace(first, phase=Phase.ENDED, reason=Reason.MOVED, ended_at=NOW))
    with ledger.read() as tx:
        assert tx.attempt("aaaa1111", 1).reason == Reason.MOVED
        assert [a.number for a in tx.open_attempts()] == [2]
        assert tx.last_attempts(["aaaa1111"])["aaaa1111"].number == 2
        with pytest.raises(NotFoundError):
            tx.attempt("aaaa1111", 3)


def test_find_by_id_name_and_beginning(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.add_run(run("abc11111", key="1"))
        tx.add_run(run("abd22222", key="2"))
        tx.add_run(run("xyz33333", key="3", spec=spec("other")))
    with ledger.read() as tx:
        assert tx.find("job").id == "abd22222"  # the newest of that name
        assert tx.find("xy").id == "xyz33333"
        assert tx.find("abc11111").id == "abc11111"
        with pytest.raises(NotFoundError, match="several"):
            tx.find("ab")
        for nothing in ("%", "", "_bc"):
            with pytest.raises(NotFoundError):
                tx.find(nothing)


def test_an_exception_undoes_the_whole_transaction(ledger: Ledger) -> None:
    def write_and_fail() -> None:
        with ledger.begin() as tx:
            tx.add_run(run())
            raise RuntimeError("before the end")

    with pytest.raises(RuntimeError):
        write_and_fail()
    with ledger.read() as tx:
        assert tx.runs() == []


def test_one_run_per_key(ledger: Ledger) -> None:
    def add(run_id: str) -> None:
        with ledger.begin() as tx:
            tx.add_run(run(run_id, key="same"))

    add("aaaa1111")
    with pytest.raises(IntegrityError):
        add("bbbb2222")


def test_lists_by_state_newest_first(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        for number, state in enumerate([RunState.QUEUED, RunState.FAILED, RunState.QUEUED]):
            tx.add_run(run(f"run{number}", key=str(number), state=state))
    with ledger.read() as tx:
        assert [r.id for r in tx.runs(states=[RunState.QUEUED])] == ["run2", "run0"]
        assert [r.id for r in tx.runs(limit=1)] == ["run2"]


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from orchestrator.store.ledger import Ledger
        from tests.unit.records import run
        ledger = Ledger(Path(sys.argv[1]))
        for number in range(10_000):
            with ledger.begin() as tx:
                tx.add_run(run(f"r{number}", key=str(number)))
            print(number, flush=True)
    """)
    path = tmp_path / "ledger.db"
    acknowledged = tmp_path / "acknowledged"
    with acknowledged.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=out, cwd=Path.cwd())
    wait_until(lambda: len(acknowledged.read_bytes().split()) > 20, 30)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    last = int(acknowledged.read_bytes().split(b"\n")[-2])
    with Ledger(path).read() as tx:
        assert len(tx.runs()) >= last + 1


def test_opening_twice_migrates_once(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(tmp_path / "ledger.db").read() as tx:
            assert tx.runs() == []


def test_energy_comes_back_and_is_unknown_for_what_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    members = [{"ray_id": "ray-b", "node": "b", "gpu_ids": [], "end": None}]
    _as_of("0003", path, run(), attempt(), members=json.dumps(members))
    ledger = Ledger(path)
    with ledger.read() as tx:
        old, before = tx.run("aaaa1111"), tx.attempt("aaaa1111", 1)
    assert (old.joules_used, old.energy_source, old.cost) == (0.0, None, None)
    assert before == attempt(members=(Member("ray-b", "b", joules=0.0),))
    known = {"energy_source": EnergySource.MIXED, "cost": 0.25}
    member = replace(before.members[0], joules=3.0)
    after = replace(before, joules=7.5, energy_at=NOW, members=(member,), **known)
    with ledger.begin() as tx:
        tx.save_run(replace(old, joules_used=7.5, **known))
        tx.save_attempt(after)
    with ledger.read() as tx:
        assert tx.run("aaaa1111") == replace(old, joules_used=7.5, **known)
        assert tx.attempt("aaaa1111", 1) == after


def _as_of(revision: str, path: Path, run: RunRecord, attempt: AttemptRecord, **of_attempt: object) -> None:
    """Write a file as that revision had left it, with these values of the attempt's columns."""
    config = Config()
    config.set_main_option("script_location", str(Path(ledger_module.__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        rows = {"runs": ledger_module._run_values(run)}
        rows["attempts"] = {**ledger_module._attempt_values(attempt), **of_attempt}
        for table, values in rows.items():
            there = [row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")]
            chosen = [name for name in there if name in values]
            marks = ", ".join("?" for _ in chosen)
            row = tuple(json.dumps(v) if isinstance(v := values[n], dict | list) else v for n in chosen)
            connection.exec_driver_sql(f"INSERT INTO {table} ({', '.join(chosen)}) VALUES ({marks})", row)
        connection.commit()
    engine.dispose()
