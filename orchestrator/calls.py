"""The controller's routes, each as a method of :class:`Calls`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from orchestrator.connection import Connection, LostAnswerError
from orchestrator.errors import UnavailableError
from orchestrator.messages import (
    CheckpointView,
    GarbageRequest,
    GarbageView,
    Health,
    LimitRequest,
    LimitsView,
    LogPage,
    MoveRequest,
    NodeView,
    NotifyRequest,
    NotifySent,
    NotifyTest,
    NotifyView,
    PlanView,
    PointView,
    RunDetail,
    RunView,
    SubmitRequest,
    Submitted,
    TagRequest,
    TariffRequest,
    TariffView,
    WhyView,
)
from orchestrator.spec.tariff import TariffSpec

if TYPE_CHECKING:
    from orchestrator.messages_schedules import (
        ComingView,
        FireView,
        ScheduleDetail,
        ScheduleRequest,
        ScheduleView,
    )
    from orchestrator.messages_sweeps import (
        ExtendRequest,
        SweepDetail,
        SweepRequest,
        SweepSubmitted,
        SweepView,
    )
    from orchestrator.messages_top import TopView

M = TypeVar("M", bound=BaseModel)

NOTIFY_TIMEOUT_S = 120.0
"""Longest wait for services that notifications go to."""
GARBAGE_TIMEOUT_S = 1800.0
"""Longest wait for a whole store to be looked through."""
REPORT_TIMEOUT_S = 300.0
"""Longest wait for a report to be made."""
MOST_RUNS = 10_000
"""Largest number of runs that the controller lists at once."""
POLL_S = 1.0
"""Pause between two looks at what has not ended."""


class Calls(Connection):
    """One method per route."""

    # ------------------------------------------------------------------ runs

    def submit(self, request: SubmitRequest, *, patience_s: float = 30.0) -> Submitted:
        """Have a spec accepted as a run; the same key and spec give the same run.

        See :meth:`submit_sweep` for what happens where the connection breaks.
        """
        return self._accepted(Submitted, "/v1/runs", request, "run", patience_s)

    def submit_sweep(self, request: SweepRequest, *, patience_s: float = 30.0) -> SweepSubmitted:
        """Have a sweep accepted; the same key and spec give the same sweep.

        Where the connection breaks before the answer came, the request is sent again with the same key, for
        up to `patience_s`. A controller that is not there at all is reported at once.
        """
        from orchestrator.messages_sweeps import SweepSubmitted

        return self._accepted(SweepSubmitted, "/v1/sweeps", request, "sweep", patience_s)

    def _accepted(
        self, kind: type[M], path: str, request: SubmitRequest | SweepRequest, what: str, patience_s: float
    ) -> M:
        begin, unsure = self._clock.monotonic(), False
        while True:
            try:
                return self._one(kind, "POST", path, body=request)
            except UnavailableError as e:
                unsure = unsure or isinstance(e, LostAnswerError)
                if not unsure:
                    raise
                if self._clock.monotonic() - begin > patience_s:
                    raise UnavailableError(
                        f"{e.message}; whether it accepted the {what} is not known",
                        remedy=f"submit it again with the key {request.key}: it will not run twice",
                    ) from e
            self._clock.sleep(POLL_S)

    def plan(self, request: SubmitRequest) -> PlanView:
        """What would happen to a spec if it were submitted now."""
        return self._one(PlanView, "POST", "/v1/plan", body=request)

    def runs(
        self, states: Sequence[str] = (), experiment: str | None = None, limit: int = MOST_RUNS
    ) -> list[RunView]:
        """Runs in one of the states (any where none is given), newest first."""
        query = {"state": list(states), "experiment": experiment, "limit": limit}
        return self._many(RunView, "/v1/runs", query)

    def run(self, ref: str) -> RunDetail:
        """Everything about one run. `ref` is an id, a unique prefix of one, or a name (its newest run)."""
        return self._one(RunDetail, "GET", _run_path(ref))

    def cancel(self, ref: str) -> RunView:
        """Stop a run for good. Durable once this returns."""
        return self._one(RunView, "POST", _run_path(ref, "cancel"))

    def move(self, ref: str, pool: str) -> RunView:
        """Save a run and go on with it in another pool."""
        return self._one(RunView, "POST", _run_path(ref, "move"), body=MoveRequest(pool=pool))

    def queue(self) -> list[RunView]:
        """Runs that wait, in the order in which they are looked at."""
        return self._many(RunView, "/v1/queue")

    def why(self, ref: str) -> WhyView:
        """What stands in the way of a run."""
        return self._one(WhyView, "GET", _run_path(ref, "why"))

    def hold(self, ref: str) -> RunView:
        """Hold a run back: it does not start, or not again, until it is released."""
        return self._one(RunView, "POST", _run_path(ref, "hold"))

    def release(self, ref: str) -> RunView:
        """Let a run that was held back start again."""
        return self._one(RunView, "POST", _run_path(ref, "release"))

    def top(self, ref: str) -> RunView:
        """Let a run go before all others of its priority."""
        return self._one(RunView, "POST", _run_path(ref, "top"))

    def limits(self) -> LimitsView:
        """Most attempts at a time, by pool and experiment."""
        return self._one(LimitsView, "GET", "/v1/limits")

    def set_limit(self, request: LimitRequest) -> LimitsView:
        """Set a limit, or take it away."""
        return self._one(LimitsView, "PUT", "/v1/limits", body=request)

    def tariff(self) -> TariffView:
        """What electricity costs."""
        return self._one(TariffView, "GET", "/v1/tariff")

    def set_tariff(self, spec: TariffSpec | None) -> TariffView:
        """Set the tariff, or take it away with None."""
        return self._one(TariffView, "PUT", "/v1/tariff", body=TariffRequest(tariff=spec))

    def notify_targets(self) -> list[NotifyView]:
        """Who is told of what happens, with addresses masked."""
        return self._many(NotifyView, "/v1/notify")

    def add_notify(self, request: NotifyRequest) -> NotifyView:
        """Tell somebody from now on. SpecError where the address is not understood."""
        answer = self._request("POST", "/v1/notify", body=request, timeout_s=NOTIFY_TIMEOUT_S)
        return self._read(NotifyView, answer.content)

    def remove_notify(self, name: str) -> NotifyView:
        """Tell somebody nothing any more."""
        return self._one(NotifyView, "DELETE", f"/v1/notify/{quote(name, safe='')}")

    def test_notify(self, names: Sequence[str] = ()) -> list[NotifySent]:
        """Send a message to these targets, all where none is named, and say what came of it."""
        body = NotifyTest(names=list(names))
        answer = self._request("POST", "/v1/notify/test", body=body, timeout_s=NOTIFY_TIMEOUT_S)
        return self._read(list[NotifySent], answer.content)

    def checkpoints(self, ref: str) -> list[CheckpointView]:
        """Committed checkpoints of a run."""
        return self._many(CheckpointView, _run_path(ref, "checkpoints"))

    def tag(self, ref: str, step: int, name: str) -> CheckpointView:
        """Give a checkpoint a name, which keeps it."""
        return self._one(
            CheckpointView, "PUT", _run_path(ref, f"tags/{quote(name, safe='')}"), body=TagRequest(step=step)
        )

    def untag(self, ref: str, name: str) -> CheckpointView:
        """Take a name away; the checkpoint that had it."""
        return self._one(CheckpointView, "DELETE", _run_path(ref, f"tags/{quote(name, safe='')}"))

    def collect_garbage(self, *, dry_run: bool) -> list[GarbageView]:
        """Delete data that no checkpoint needs, or say what that would be. Can take minutes."""
        body = GarbageRequest(dry_run=dry_run)
        answer = self._request("POST", "/v1/garbage", body=body, timeout_s=GARBAGE_TIMEOUT_S)
        return self._read(list[GarbageView], answer.content)

    def points(self, ref: str, keys: Sequence[str] = ()) -> list[PointView]:
        """Measurements of a run; all metrics where no key is given."""
        return self._many(PointView, _run_path(ref, "points"), {"key": list(keys)})

    def logs(
        self, ref: str, attempt: int | None = None, offset: int = 0, wait_s: float = 0.0, rank: int = 0
    ) -> LogPage:
        """A piece of an attempt's output (the newest attempt's when None), or of one rank of it.

        The controller waits up to `wait_s` for some where there is none yet.
        """
        query = {"attempt": attempt, "offset": offset, "wait": wait_s or None, "rank": rank or None}
        return self._one(LogPage, "GET", _run_path(ref, "logs"), query)

    def links(self, refs: Sequence[str]) -> dict[str, str]:
        """MLflow's pages that show these runs side by side, by name."""
        answer = self._request("GET", "/v1/links", {"ref": list(refs)})
        return self._read(dict[str, str], answer.content)

    def report(self, refs: Sequence[str]) -> str:
        """One HTML page about a sweep, or about one or more runs. Can take a minute for a large sweep."""
        query = {"ref": list(refs)}
        return self._request("GET", "/v1/report", query, timeout_s=REPORT_TIMEOUT_S).text

    # ------------------------------------------------------------------ sweeps

    def sweeps(self, states: Sequence[str] = (), limit: int = MOST_RUNS) -> list[SweepView]:
        """Sweeps in one of the states (any where none is given), newest first."""
        from orchestrator.messages_sweeps import SweepView

        return self._many(SweepView, "/v1/sweeps", {"state": list(states), "limit": limit})

    def sweep(self, ref: str) -> SweepDetail:
        """Everything about one sweep. `ref`: an id, a unique prefix of one, or a name (its newest sweep)."""
        from orchestrator.messages_sweeps import SweepDetail

        return self._one(SweepDetail, "GET", _sweep_path(ref))

    def pause_sweep(self, ref: str) -> SweepView:
        """No new trials and no promotions until it is resumed; what executes goes on."""
        from orchestrator.messages_sweeps import SweepView

        return self._one(SweepView, "POST", _sweep_path(ref, "pause"))

    def resume_sweep(self, ref: str) -> SweepView:
        """Go on with a paused sweep."""
        from orchestrator.messages_sweeps import SweepView

        return self._one(SweepView, "POST", _sweep_path(ref, "resume"))

    def cancel_sweep(self, ref: str) -> SweepView:
        """End a sweep and the runs of its trials for good. Durable once this returns."""
        from orchestrator.messages_sweeps import SweepView

        return self._one(SweepView, "POST", _sweep_path(ref, "cancel"))

    def extend_sweep(self, ref: str, request: ExtendRequest) -> SweepView:
        """Give a sweep a larger budget; one that has finished goes on."""
        from orchestrator.messages_sweeps import SweepView

        return self._one(SweepView, "POST", _sweep_path(ref, "extend"), body=request)

    # ------------------------------------------------------------------ schedules

    def add_schedule(self, request: ScheduleRequest) -> ScheduleView:
        """Have a schedule accepted; the same key is the same schedule."""
        from orchestrator.messages_schedules import ScheduleView

        return self._one(ScheduleView, "POST", "/v1/schedules", body=request)

    def schedules(self, *, ended: bool = False) -> list[ScheduleView]:
        """Schedules, oldest first; with `ended` also those that never fire again by themselves."""
        from orchestrator.messages_schedules import ScheduleView

        return self._many(ScheduleView, "/v1/schedules", {"ended": ended})

    def schedule(self, ref: str) -> ScheduleDetail:
        """Everything about one schedule. `ref` is an id, a unique prefix of one, or a name."""
        from orchestrator.messages_schedules import ScheduleDetail

        return self._one(ScheduleDetail, "GET", _schedule_path(ref))

    def fires(self, ref: str, limit: int = 50) -> list[FireView]:
        """What became of a schedule's due times, newest first."""
        from orchestrator.messages_schedules import FireView

        return self._many(FireView, _schedule_path(ref, "fires"), {"limit": limit})

    def coming_fires(self, ref: str | None = None, limit: int = 10) -> list[ComingView]:
        """Due times that are still to come, of one schedule or of all, in their order."""
        from orchestrator.messages_schedules import ComingView

        return self._many(ComingView, "/v1/coming", {"ref": ref, "limit": limit})

    def pause_schedule(self, ref: str) -> ScheduleView:
        """No due time counts until it is resumed; what has fired goes on."""
        from orchestrator.messages_schedules import ScheduleView

        return self._one(ScheduleView, "POST", _schedule_path(ref, "pause"))

    def resume_schedule(self, ref: str) -> ScheduleView:
        """Due times count from now on."""
        from orchestrator.messages_schedules import ScheduleView

        return self._one(ScheduleView, "POST", _schedule_path(ref, "resume"))

    def remove_schedule(self, ref: str) -> ScheduleView:
        """It never fires again; what it has created goes on."""
        from orchestrator.messages_schedules import ScheduleView

        return self._one(ScheduleView, "DELETE", _schedule_path(ref))

    def fire(self, ref: str, key: str) -> FireView:
        """Fire now; the same key is the same fire. ConflictError where earlier work forbids it."""
        from orchestrator.messages_schedules import FireRequest, FireView

        return self._one(FireView, "POST", _schedule_path(ref, "fires"), body=FireRequest(key=key))

    # ------------------------------------------------------------------ cluster

    def nodes(self) -> list[NodeView]:
        """Machines of the cluster."""
        return self._many(NodeView, "/v1/nodes")

    def drain(self, node: str, *, undo: bool = False) -> NodeView:
        """Start nothing new on a node, and have what runs there go on elsewhere; `undo`: use it again.

        NotFoundError names the nodes there are.
        """
        path = f"/v1/nodes/{quote(node, safe='')}/drain"
        return self._one(NodeView, "DELETE" if undo else "POST", path)

    def overview(self, since: datetime) -> TopView:
        """The whole cluster at one look, with the energy that was used since an aware instant of the last two
        days."""
        from orchestrator.messages_top import TopView

        return self._one(TopView, "GET", "/v1/top", {"since": since.isoformat()})

    def health(self) -> Health:
        """Who answers. Without a token only `version` is filled."""
        return self._one(Health, "GET", "/v1/health")

    def shutdown(self) -> int:
        """Have every attempt save and stop, and start nothing new. Returns how many attempts were told."""
        answer = self._request("POST", "/v1/shutdown").content
        return self._read(dict[str, int], answer)["attempts"]


def _sweep_path(ref: str, part: str = "") -> str:
    return f"/v1/sweeps/{quote(ref, safe='')}" + (f"/{part}" if part else "")


def _schedule_path(ref: str, part: str = "") -> str:
    return f"/v1/schedules/{quote(ref, safe='')}" + (f"/{part}" if part else "")


def _run_path(ref: str, *rest: str) -> str:
    return "/".join(["/v1/runs", quote(ref, safe=""), *rest])
