"""Asking for a compiled step that another machine has made. Nothing is compiled here: the programs are run as
they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.trainer.support import start, tiny, write_text
from trainer import engine as engine_module
from trainer import sharing
from trainer.engine import SwitchingEngine
from trainer.errors import TrainerError
from trainer.library import LibraryError
from trainer.orders import Order, Programs, Sources
from trainer.sharing import Request
from trainer.train import Training

KEY = "a" * 32


class Store:
    """Stands in for whoever runs the trainer, and for the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has = False
        self.compilers = 0

    def load(self, order: Order, callers: int) -> Programs | None:
        if not self.has:
            return None
        sources = Sources.of(order)
        return Programs(sources.gradient, sources.update)

    def compiler(self, order: Order) -> None:
        self.compilers += 1
        raise LibraryError("compiling was begun")

    @property
    def asked(self) -> list[Path]:
        return list(self.folder.iterdir())

    def answer(self, has: bool) -> None:
        """As the agent does: first the entry, then the file goes."""
        self.has = has
        for file in self.asked:
            file.unlink()

    def answer_later(self, has: bool) -> threading.Thread:
        """Once it is asked."""

        def run() -> None:
            deadline = time.monotonic() + 60
            while not self.asked and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            self.answer(has)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    one = Store(tmp_path / "wanted")
    one.folder.mkdir()
    monkeypatch.setenv("ORCH_COMPILED_WANTED", str(one.folder))
    monkeypatch.setattr(engine_module, "load", one.load)
    monkeypatch.setattr(engine_module, "Compiler", one.compiler)
    for name in ("_WORTHWHILE_S", "_ESTIMATE_S", "_POLL_S"):
        monkeypatch.setattr(engine_module, name, 0.0)
    return one


def training(folder: Path, compile: bool | str) -> Training:
    config = tiny(write_text(folder), compile=compile, dropout=0.0, max_steps=10**6, log_interval=10**6)
    return start(config, folder)[0]


def test_a_question_is_answered_by_its_file_going(store: Store) -> None:
    request = Request(KEY)
    assert [file.name for file in store.asked] == [KEY]
    assert request.pending
    store.answer(False)
    assert not request.pending
    request.wait()


def test_no_answer_is_one_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.2)
    request = Request(KEY)
    assert request.pending
    request.wait()
    assert not request.pending
    assert store.asked


@pytest.mark.parametrize("folder", [None, "/dev/null/folder"])
def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, folder: str | None) -> None:
    monkeypatch.delenv("ORCH_COMPILED_WANTED", raising=False)
    if folder:
        monkeypatch.setenv("ORCH_COMPILED_WANTED", folder)
    assert not Request(KEY).pending


def test_what_the_cache_has_is_named_and_not_waited_for(store: Store, tmp_path: Path) -> None:
    store.has = True
    run = training(tmp_path, True)
    assert run.engine.compiled
    assert isinstance(run.engine, SwitchingEngine)
    assert [file.name for file in store.asked] == [run.engine._order.key]
    run.close()


def test_compile_true_waits_and_does_not_compile(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = store.answer_later(True)
    run = training(tmp_path, True)
    answering.join()
    assert run.engine.compiled
    run.update()
    run.close()
    assert store.compilers == 0
    assert "compiling" not in capsys.readouterr().out


@pytest.mark.parametrize("answers", [True, False])
def test_compile_true_compiles_what_it_does_not_get(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    answering = store.answer_later(False) if answers else None
    monkeypatch.setattr(sharing, "PATIENCE_S", 60.0 if answers else 0.2)
    with pytest.raises(TrainerError, match="compiling was begun"):
        training(tmp_path, True)
    if answering is not None:
        answering.join()
    assert store.compilers == 1


def update(run: Training, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        run.update()


def test_compile_auto_trains_meanwhile_and_takes_over(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = training(tmp_path, "auto")
    update(run, lambda: run.step == 30)
    assert not run.engine.compiled
    assert run.engine.waiting
    store.answer(True)
    update(run, lambda: run.engine.compiled)
    assert run.step == 31
    assert "step 30: the compiled step takes over; another machine has compiled it" in capsys.readouterr().out
    run.update()
    run.close()
    assert store.compilers == 0


def test_compile_auto_compiles_after_the_answer(store: Store, tmp_path: Path) -> None:
    run = training(tmp_path, "auto")
    update(run, lambda: run.step == 30)
    assert store.compilers == 0
    store.answer(False)
    update(run, lambda: store.compilers == 1)
    assert not run.engine.compiled
    run.close()
