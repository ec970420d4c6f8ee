"""A stand-in for the controller: a real HTTP server that remembers what agents say."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.messages_agent import Beat, BeatReply, Outcome, Point
from tests.support import free_port

TOKEN = "s3cret-token"


class StandInController:
    """Answers beats and takes artifacts. Can be taken away and brought back on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.reply = BeatReply()
        self.refuse: tuple[int, str] | None = None
        """Status and kind of an error answer to every beat."""
        self.refuse_point: str | None = None
        """A beat with a point of this key gets 422."""
        self.beats: list[Beat] = []
        self.log = b""
        self.artifacts: dict[str, bytes] = {}
        self.unauthorized = 0
        self.lost_answers = 0
        """So many beats are taken but not answered."""
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        stand_in = self

        class Handler(_Handler):
            controller = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def stopped(self) -> bool:
        return self._server is None

    # ------------------------------------------------------------------ what it heard

    @property
    def outcome(self) -> Outcome | None:
        return next((beat.outcome for beat in self.beats if beat.outcome), None)

    @property
    def points(self) -> list[Point]:
        return [point for beat in self.beats for point in beat.points]

    @property
    def events(self) -> list[str]:
        return [event for beat in self.beats for event in beat.events]

    @property
    def committed(self) -> list[int]:
        return [note.step for beat in self.beats for note in beat.checkpoints]

    @property
    def last_step(self) -> int:
        return max((point.step for point in self.points), default=-1)

    def evidence(self) -> str:
        last = self.beats[-1].model_dump_json() if self.beats else "none"
        return f"{len(self.beats)} beats, last: {last}\nevents: {self.events}\nlog: {self.log[-2000:]!r}"

    # ------------------------------------------------------------------ what it does

    def take(self, data: bytes) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if self.refuse is not None:
                return self.refuse[0], {"kind": self.refuse[1], "message": "refused by the test"}
            beat = Beat.model_validate_json(data)
            if self.refuse_point in {point.key for point in beat.points}:
                return 422, {"kind": "spec", "message": f"no {self.refuse_point}"}
            self.beats.append(beat)
            if beat.log is not None and beat.log.offset <= len(self.log):
                self.log = self.log[: beat.log.offset] + beat.log.data
            if self.lost_answers:
                self.lost_answers -= 1
                return 0, {}
            reply = self.reply.model_copy(update={"log_offset": len(self.log)})
            return 200, json.loads(reply.model_dump_json())


class _Handler(BaseHTTPRequestHandler):
    controller: StandInController
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._authorized():
            return self._answer(401, {"kind": "unauthorized", "message": "no"})
        status, body = self.controller.take(data)
        if status:
            return self._answer(status, body)
        self.close_connection = True
        return None

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._authorized():
            return self._answer(401, {"kind": "unauthorized", "message": "no"})
        self.controller.artifacts[self.path.partition("/artifacts/")[2]] = data
        return self._answer(200, {})

    def _authorized(self) -> bool:
        if self.controller.stopped:
            self.close_connection = True
            raise ConnectionAbortedError("the controller is away")
        right = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.controller.unauthorized += not right
        return right

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
