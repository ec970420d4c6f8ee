"""A controller made of prepared answers, over real HTTP, and runs to fill it with."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.errors import NotFoundError, OrchError, SpecError
from orchestrator.messages import (
    AttemptView,
    CheckpointView,
    EventView,
    GarbageRequest,
    GarbageView,
    Health,
    LogPage,
    MoveRequest,
    NodeView,
    PlanLine,
    PlanView,
    PointView,
    Problem,
    RunDetail,
    RunView,
    SubmitRequest,
    Submitted,
    TagRequest,
    TariffRequest,
    TariffView,
)
from orchestrator.messages_top import TopView
from orchestrator.spec.models import RunSpec, Variant
from trainer.config import TrainerConfig

TOKEN = "secret-token-of-the-tests"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def spec(name: str = "demo", **trainer: Any) -> RunSpec:
    """A spec that may run on the laptop and, in bfloat16, on the GPU box."""
    return RunSpec(
        name=name,
        trainer=TrainerConfig(**trainer),
        placement=[
            Variant(pool="laptop", cpus=2),
            Variant(pool="gpu", gpus=1, trainer={"dtype": "bfloat16"}),
        ],
    )


def attempt(number: int = 1, node: str = "laptop", **changes: Any) -> AttemptView:
    """An attempt that runs."""
    values: dict[str, Any] = {
        "number": number,
        "phase": Phase.RUNNING,
        "node": node,
        "pool": node,
        "device": "cpu" if node == "laptop" else "NVIDIA GeForce RTX 4070 Ti",
        "first_step": 0,
        "last_step": 500,
        "created_at": NOW - timedelta(minutes=3),
        "started_at": NOW - timedelta(minutes=3),
    }
    return AttemptView(**{**values, **changes})


def detail(
    run: str = "abcd2345", name: str = "demo", trainer: dict[str, Any] | None = None, **view: Any
) -> RunDetail:
    """A run that trains on the laptop."""
    values: dict[str, Any] = {
        "id": run,
        "name": name,
        "experiment": "default",
        "state": RunState.RUNNING,
        "pool": "laptop",
        "node": "laptop",
        "attempt": 1,
        "step": 500,
        "target_steps": 2000,
        "loss": 2.1234,
        "val_loss": 2.2,
        "tokens_per_s": 21_400.0,
        "eta_s": 83.0,
        "created_at": NOW - timedelta(minutes=3),
        "started_at": NOW - timedelta(minutes=3),
        "user": "ada",
    }
    return RunDetail(
        run=RunView(**{**values, **view}),
        spec=spec(name, **(trainer or {})),
        attempts=[attempt()],
        events=[
            EventView(at=NOW - timedelta(minutes=3), kind="submitted", text=f"accepted as {run}"),
            EventView(at=NOW - timedelta(minutes=3), kind="started", text="attempt 1 runs on laptop"),
        ],
        metrics={"train/loss": 2.1234, "val/loss": 2.2},
        links={"run": f"http://127.0.0.1:5000/#/experiments/1/runs/{run}0000"},
    )


def handed_over(run: str = "abcd2345", name: str = "demo", **view: Any) -> RunDetail:
    """A run that began on the laptop and ended well on the GPU box."""
    moved = attempt(
        phase=Phase.ENDED, reason=Reason.MOVED, last_step=1000, ended_at=NOW - timedelta(seconds=90)
    )
    second = attempt(
        2,
        "gpu",
        phase=Phase.ENDED,
        reason=Reason.COMPLETED,
        first_step=1000,
        last_step=2000,
        created_at=NOW - timedelta(seconds=88),
        started_at=NOW - timedelta(seconds=80),
        ended_at=NOW - timedelta(seconds=30),
    )
    values = {
        "state": RunState.SUCCEEDED,
        "pool": "gpu",
        "node": "gpu",
        "attempt": 2,
        "step": 2000,
        "loss": 1.76,
        "val_loss": 1.889,
        "tokens_per_s": None,
        "eta_s": None,
        "ended_at": NOW - timedelta(seconds=30),
    }
    base = detail(run, name, **{**values, **view})
    texts = [
        "attempt 1 on laptop ended at step 1000 (moved: saved, to go on elsewhere)",
        "attempt 2 runs on gpu from step 1000",
    ]
    news = [EventView(at=NOW - timedelta(seconds=90), kind="started", text=text) for text in texts]
    return base.model_copy(update={"attempts": [moved, second], "events": [*base.events, *news]})


def waiting() -> RunDetail:
    """A run that no attempt was made for."""
    view: dict[str, Any] = {
        "state": RunState.QUEUED,
        "attempt": 0,
        "step": None,
        "tokens_per_s": None,
        "eta_s": None,
        "loss": None,
        "val_loss": None,
        "node": None,
        "pool": None,
    }
    base = detail("wait2345", "night", message="every GPU of pool gpu is in use", **view)
    return base.model_copy(update={"attempts": [], "events": base.events[:1]})


def checkpoint(step: int = 1000, **changes: Any) -> CheckpointView:
    """A checkpoint that is kept."""
    values: dict[str, Any] = {
        "run": "abcd2345",
        "step": step,
        "attempt": 1,
        "node": "laptop",
        "device": "cpu",
        "at": NOW - timedelta(minutes=1),
        "size": 9_800_000,
        "metrics": {"val/loss": 1.95},
        "uri": f"file:///store/runs/abcd2345/data/1/{step}-x",
    }
    return CheckpointView(**{**values, **changes})


@dataclass
class FakeController:
    """Holds the answers, and remembers the requests as (method, path with query, body)."""

    runs: dict[str, list[RunDetail]] = field(default_factory=dict)
    """By id: what is answered one after another; the last stays."""
    logs: dict[tuple[str, int], bytes] = field(default_factory=dict)
    rank_logs: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    checkpoints: list[CheckpointView] = field(default_factory=list)
    top: TopView | None = None
    garbage: list[GarbageView] = field(default_factory=list)
    garbage_wanted: bool = False
    """Whether it was to be deleted."""
    points: list[PointView] = field(default_factory=list)
    tariff: TariffView = field(default_factory=TariffView)
    nodes: list[NodeView] = field(default_factory=list)
    failures: list[Callable[[Handler], None]] = field(default_factory=list)
    """Each is used up by one request, in place of its answer."""
    refusal: OrchError | None = None
    """Answer to everything."""
    page_size: int = 1000
    keys: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    url: str = ""

    def add(self, *details: RunDetail) -> None:
        """Have a run answered, with a list of how it changes from look to look."""
        self.runs.setdefault(details[0].run.id, []).extend(details)

    def look(self, ref: str) -> RunDetail:
        """The next prepared answer about a run."""
        for run_id, states in reversed(self.runs.items()):
            if run_id.startswith(ref) or states[0].run.name == ref:
                return states.pop(0) if len(states) > 1 else states[0]
        raise NotFoundError(f"no run is called {ref}", remedy="`orch ls --all` lists every run with its id")

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The answer of one route, as models."""
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["health"]:
                return Health(version="0.1.0", cluster_id="c1")
            case "GET", ["top"] if self.top is not None:
                return self.top
            case "GET", ["tariff"]:
                return self.tariff
            case "PUT", ["tariff"]:
                spec = TariffRequest.model_validate(body).tariff
                self.tariff = TariffView(tariff=spec, price=spec.default if spec else None)
                return self.tariff
            case "GET", ["nodes"]:
                return self.nodes
            case "POST" | "DELETE", ["nodes", name, "drain"]:
                return self._drain(unquote(name), method == "POST")
            case "POST", ["shutdown"]:
                return {"attempts": 1}
            case "GET", ["links"]:
                return {"compare": "http://127.0.0.1:5000/#/compare-runs?runs=" + ",".join(query["ref"])}
            case "GET", ["report"]:
                for ref in query["ref"]:
                    self.look(ref)
                return f"<!doctype html>\n<title>{' '.join(query['ref'])} – ü</title>\n"
            case "POST", ["garbage"]:
                self.garbage_wanted = not GarbageRequest.model_validate(body).dry_run
                return self.garbage
            case "POST", ["plan"]:
                return _plan(SubmitRequest.model_validate(body))
            case "POST", ["runs"]:
                return self._submit(SubmitRequest.model_validate(body))
            case "GET", ["runs"]:
                return self._list(query)
            case _, ["runs", ref, *rest]:
                return self._run(method, unquote(ref), rest, query, body)
        raise NotFoundError(f"no route {method} {path}")

    def _drain(self, name: str, draining: bool) -> NodeView:
        found = {node.name: node for node in self.nodes}.get(name)
        if found is None:
            raise NotFoundError(f"no node is called {name}", remedy="the nodes there are: box")
        closed = "it is being drained" if draining else ""
        changes = {"draining": draining, "drained": draining and not found.runs, "closed": closed}
        return found.model_copy(update=changes)

    def _list(self, query: dict[str, list[str]]) -> list[RunView]:
        views = [states[0].run for states in reversed(self.runs.values())]
        views = [view for view in views if not query.get("state") or view.state.value in query["state"]]
        return views[: int(query["limit"][0])]

    def _submit(self, request: SubmitRequest) -> Submitted:
        created = request.key not in self.keys
        run_id = self.keys.setdefault(request.key, f"new{len(self.keys):05d}")
        if created and run_id not in self.runs:
            self.add(detail(run_id, request.spec.name, state=RunState.SUCCEEDED))
        return Submitted(run_id=run_id, name=request.spec.name, created=created)

    def _run(self, method: str, ref: str, rest: list[str], query: dict[str, list[str]], body: Any) -> Any:
        match method, rest:
            case "GET", []:
                return self.look(ref)
            case "GET", ["checkpoints"]:
                return self.checkpoints
            case "PUT", ["tags", name]:
                step = TagRequest.model_validate(body).step
                return checkpoint(step, tags=[name])
            case "DELETE", ["tags", name]:
                return checkpoint()
            case "GET", ["points"]:
                return [point for point in self.points if not query.get("key") or point.key in query["key"]]
            case "GET", ["logs"]:
                return self._log(ref, query)
            case "POST", ["cancel"]:
                return self.look(ref).run.model_copy(update={"state": RunState.CANCELLED, "message": ""})
            case "POST", ["move"]:
                MoveRequest.model_validate(body)
                return self.look(ref).run.model_copy(update={"state": RunState.STOPPING})
        raise NotFoundError(f"no route {rest}")

    def _log(self, ref: str, query: dict[str, list[str]]) -> LogPage:
        view = self.runs[ref][0].run
        attempt = int(query["attempt"][0]) if "attempt" in query else view.attempt
        if "attempt" in query and attempt > view.attempt:
            raise NotFoundError(f"run {ref} has no attempt {attempt}")
        offset = int(query["offset"][0])
        rank = int(query.get("rank", ["0"])[0])
        log = self.rank_logs.get((ref, attempt, rank)) if rank else self.logs.get((ref, attempt))
        data = (log or b"")[offset : offset + self.page_size]
        ended = attempt < view.attempt or view.state.final
        return LogPage(
            attempt=attempt,
            offset=offset,
            data=data,
            next_offset=offset + len(data),
            ended=ended,
            last_attempt=view.attempt,
        )


def _plan(request: SubmitRequest) -> PlanView:
    first, *others = request.spec.placement
    lines = [PlanLine(variant=first, node=None, why="2 of 2 CPUs are in use by demo")]
    lines += [PlanLine(variant=variant, node="gpu", why="fits now") for variant in others]
    return PlanView(lines=lines, resolved=request.spec, ahead=1)


class Handler(BaseHTTPRequestHandler):
    """Carries requests to the FakeController."""

    fake: FakeController
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    """One packet for head and body: two would wait for each other."""

    def do_GET(self) -> None:
        """Any GET."""
        self._handle()

    def do_POST(self) -> None:
        """Any POST."""
        self._handle()

    def do_PUT(self) -> None:
        """Any PUT."""
        self._handle()

    def do_DELETE(self) -> None:
        """Any DELETE."""
        self._handle()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.fake.requests.append((self.command, self.path, body))
        if self.fake.failures:
            self.fake.failures.pop(0)(self)
            return
        try:
            if self.fake.refusal:
                raise self.fake.refusal
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self.reply(401, Problem(kind="unauthorized", message="the token is missing or wrong"))
                return
            self.reply(200, self.fake.answer(self.command, parts.path, parse_qs(parts.query), body))
        except OrchError as e:
            details = {"problems": [vars(p) for p in e.problems]} if isinstance(e, SpecError) else {}
            self.reply(418, Problem(kind=e.kind, message=e.message, remedy=e.remedy, details=details))

    def reply(self, status: int, value: Any) -> None:
        """Send models as JSON, text as HTML."""
        page = isinstance(value, str)
        data = value.encode() if page else json.dumps(_plain(value)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html; charset=utf-8" if page else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, dict) else value.model_dump(mode="json")


def break_connection(handler: Handler) -> None:
    """The answer never comes: the connection ends."""
    handler.close_connection = True


def unavailable(handler: Handler) -> None:
    """What a controller says while it starts."""
    handler.reply(503, Problem(kind="unavailable", message="the controller is starting"))


@contextmanager
def serve(fake: FakeController, port: int = 0) -> Iterator[FakeController]:
    """Answer on loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
