"""Kills a process that works on an S3 server at each of its requests in turn; run by test_s3_crashes.

``python -m tests.faults.s3_child URI SOURCE SCENARIO`` lets one child after another do the scenario in a
store of its own, ``URI`` with a number for ``PREFIX``, in which attempt 1 has committed step 100. Child by
child the moment of death moves on: before a request is sent, in the middle of a body, and after the server
has carried the request out but before its answer is looked at; then the same with the next request, until a
child comes through. Prints one JSON line per child: where it worked and at what it died.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.httpsession import URLLib3Session

from orchestrator.store import s3_store, s3_upload
from orchestrator.store.checkpoints import CheckpointWriter
from orchestrator.store.objects import store_id
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_client import connect
from orchestrator.store.s3_store import S3Store
from tests.unit.store.helpers import RUN, writer

MOMENTS = ("before", "middle", "after")
PART = 5 << 20
"""Bytes of one part here: the least that servers take."""
MOST = 200


class Killer:
    """Ends the process without any clean-up at its n-th request; one at a time is on its way."""

    def __init__(self, at: int, moment: str) -> None:
        self._left, self._moment = at, moment
        self._lock = threading.Lock()
        self._to_cut = 0
        """Bytes after which what is being sent breaks off; 0: it does not."""
        self._send: Callable[..., Any] = URLLib3Session.send
        self._sendall: Callable[..., Any] = socket.socket.sendall

    def install(self) -> None:
        """From now on requests count."""
        URLLib3Session.send = lambda session, request: self._request(session, request)  # type: ignore[method-assign]
        socket.socket.sendall = lambda sock, data, *flags: self._bytes(sock, data, *flags)  # type: ignore[method-assign]

    def _request(self, session: Any, request: Any) -> Any:
        with self._lock:
            self._left -= 1
            if self._left:
                return self._send(session, request)
            what = f"{request.method} {request.url.partition('?')[2].partition('&')[0].partition('=')[0]}"
            os.write(1, f"{what.strip()}\n".encode())
            if self._moment == "before":
                die()
            if self._moment == "middle":
                self._to_cut = 1 + int(request.headers.get("Content-Length") or 0) // 2
            answer = self._send(session, request)
            die()
            return answer

    def _bytes(self, sock: Any, data: bytes, *flags: Any) -> Any:
        if not self._to_cut:
            return self._sendall(sock, data, *flags)
        head = data.find(b"\r\n\r\n") + 4 if data.startswith((b"PUT ", b"POST ")) else 0
        if len(data) < head + self._to_cut and self._to_cut > 1:
            self._to_cut -= len(data) - head
            return self._sendall(sock, data, *flags)
        end = head + self._to_cut - 1 if self._to_cut > 1 else len(data) // 2  # without a body, half the head
        self._sendall(sock, data[:end])
        return die()


def die() -> None:
    """At once."""
    os.kill(os.getpid(), signal.SIGKILL)


def commit(store: S3Store, source: Path, directory: str = "200") -> Callable[[], object]:
    """Attempt 2 commits step 200."""
    to = CheckpointWriter(store, RunLog(store, RUN).claim(2, node="n"))
    return lambda: to.commit(
        source / directory, 200, metrics={}, device="cpu", node="n", points=b"point 200\n"
    )


def claim(store: S3Store, source: Path) -> Callable[[], object]:
    """Attempt 2 takes the run."""
    return lambda: RunLog(store, RUN).claim(2, node="n")


def retain(store: S3Store, source: Path) -> Callable[[], object]:
    """Attempt 2 commits step 200, with the files of step 100, and attempt 3 then keeps only that."""
    commit(store, source, "100")()
    to = CheckpointWriter(store, RunLog(store, RUN).claim(3, node="n"))
    return lambda: to.retain(1, 0, "x", "min")


SCENARIOS = {"commit": commit, "claim": claim, "retain": retain}


def child(store: S3Store, source: Path, scenario: str, killer: Killer) -> dict[str, Any]:
    """Carry the scenario out in a process of its own; how that ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1)
        store_id(store, create=True)
        to = writer(store, 1)
        to.commit(source / "100", 100, metrics={}, device="cpu", node="n", points=b"point 100\n")
        act = SCENARIOS[scenario](store, source)
        killer.install()
        act()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        request = pipe.read().strip()
    status = os.waitpid(pid, 0)[1]
    return {"request": request, "code": os.waitstatus_to_exitcode(status)}


def main(uri: str, source: Path, scenario: str) -> int:
    """Go through all moments; 0 where the last child came through and all others were killed."""
    s3_store.PART = s3_upload.PART = PART  # type: ignore[misc]
    client = connect(S3Store(uri).place)  # it has no connection yet, so that each child can have it
    number = itertools.count()
    for at in range(1, MOST):
        writes = False
        for moment in MOMENTS:
            if moment == "middle" and not writes:
                continue
            place = uri.replace("PREFIX", f"{scenario}-{next(number)}")
            store = S3Store(place)
            store._requests._client = client
            ended = child(store, source, scenario, Killer(at, moment))
            print(json.dumps({"uri": place, "at": at, "moment": moment, **ended}), flush=True)
            if ended["code"] != -signal.SIGKILL:
                return int(ended["code"])
            writes = ended["request"].startswith(("PUT", "POST"))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
