"""A SQLite file shared by the threads of one process: durable commits, concurrent readers, one writer."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import SetupError, StoreError, StoreFullError, StoreUnavailableError

_BUSY_TIMEOUT_S = 30.0


class SqliteFile:
    """Connections to one database file.

    A transaction that :meth:`write` has left without an exception survives ``kill -9`` and loss of power
    (write-ahead log, ``synchronous=FULL``); one that raised has changed nothing. Writers queue up on a lock;
    readers see the last committed state and wait for nobody.
    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        """Open or create the file. A file written by a later program version is refused with SetupError."""
        self._path = path
        self._write_lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._create(schema, version)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end of the block, rolled back where it raises."""
        with self._write_lock, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one committed state throughout the block."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close what is idle now; a connection in use is closed when its block ends."""
        with self._pool_lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _create(self, schema: str, version: int) -> None:
        with self._write_lock, self._connection() as connection:
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > version:
                raise SetupError(
                    f"{self._path} was written by a later version (format {found}, known is {version})",
                    remedy="Run the version that wrote it, or move the file away.",
                )
            if found < version:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(f"BEGIN IMMEDIATE;{schema};PRAGMA user_version={version};COMMIT;")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._give(connection)
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error

    def _take(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise StoreUnavailableError(f"{self._path} is closed")
            if self._idle:
                return self._idle.pop()
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _give(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _translated(error: sqlite3.Error, path: Path) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"no space left for {path}", remedy="Free some space on this disk.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return StoreUnavailableError(f"cannot use {path}: {error}")
    return StoreError(f"{path}: {error}")
