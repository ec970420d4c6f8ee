"""Puts the controller together and gives its parts one start and one stop."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from orchestrator.clock import SYSTEM, Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control import best
from orchestrator.control.beats import Beats
from orchestrator.control.best import Best
from orchestrator.control.board import Board
from orchestrator.control.config import ControllerConfig
from orchestrator.control.curves import Curves
from orchestrator.control.deadlines import Deadlines
from orchestrator.control.energy import EnergyBook
from orchestrator.control.estimates import Estimates
from orchestrator.control.exclusions import NodeHealth
from orchestrator.control.firing import Firing
from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.keeping import Keeping
from orchestrator.control.live import LiveBoard
from orchestrator.control.logs import RunFiles
from orchestrator.control.loop import Loop
from orchestrator.control.machines import Machines
from orchestrator.control.nodebook import Drains, NodeBook
from orchestrator.control.notifier import Notifier
from orchestrator.control.origin import resolve_origin
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.pages import pages
from orchestrator.control.probes import Probes
from orchestrator.control.reporting import Reporting, Sources
from orchestrator.control.sampling import Search, importance
from orchestrator.control.schedules import Schedules
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.service import Service
from orchestrator.control.shares import gpu_share
from orchestrator.control.sight import Sight
from orchestrator.control.stuck import Stuck
from orchestrator.control.sweep_round import SweepRound
from orchestrator.control.sweep_tracking import SweepTracking
from orchestrator.control.sweep_views import SweepViews
from orchestrator.control.sweeps import Sweeps
from orchestrator.control.tariffs import TariffBook
from orchestrator.control.telling import Telling
from orchestrator.control.today import Today
from orchestrator.control.top import CURVES, Top
from orchestrator.control.tracking import Tracking
from orchestrator.control.views import Views
from orchestrator.control.wording import Wording
from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.sweeps import SweepRecord
from orchestrator.messages import TariffView
from orchestrator.notify import texts
from orchestrator.notify.sending import Sender
from orchestrator.notify.targets import TargetFile
from orchestrator.spec.tariff import TariffSpec
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import open_store, store_id
from orchestrator.store.spool import Spool
from orchestrator.tracking.mlflow_sink import MlflowSink
from orchestrator.tracking.shipper import Shipper

log = logging.getLogger(__name__)


class Controller:
    """One per cluster: observes, decides, acts, records."""

    def __init__(self, config: ControllerConfig, gateway: Gateway, clock: Clock = SYSTEM) -> None:
        self.config = config
        self.gateway = gateway
        self._clock = clock
        self.store = open_store(config.store_uri)
        self.store_id = store_id(self.store, create=True)
        self.ledger = Ledger(config.home.ledger_file)
        self.spool = Spool(config.home.points_file)
        self.live = LiveBoard(clock)
        self.health = NodeHealth(self.ledger, clock)
        self.estimates = Estimates(self.ledger, self.live, clock)
        self.book = NodeBook(Drains(config.home.drains_file, clock), clock)
        self.tariffs = TariffBook(config.home.tariff_file)
        self.board = Board(
            self.ledger,
            self.live,
            clock,
            self.estimates.remaining,
            self.tariffs.tariff,
            config.window_grace_s,
        )
        self.watcher = FleetWatcher(
            gateway, self.wake, lambda node: self.health.told(self.book.told(node)), lambda: self.board.idle
        )
        self.scheduling = Scheduling(self.board, self.ledger, self.estimates, clock, config.upgrade_rest_s)
        self.energy = EnergyBook(self.ledger, self.spool, self.live, clock, self.tariffs.tariff)
        views = Views(
            self.ledger, self.spool, self.live, self.scheduling, self.estimates, self.watcher, self.energy
        )
        self.machines = Machines(self.book, self.watcher, views)
        self.keeping = Keeping(self.ledger, self.store, clock)
        self.probes = Probes(gateway, clock)
        files = RunFiles(config.home.run_logs)
        tracking = Tracking(self.ledger, self.spool, self.store, clock, enabled=bool(config.mlflow_url))
        self.outcomes = self._outcomes(tracking)
        self.beats = self._beats(files, tracking)
        self.service = self._service(files, tracking)
        self.sweep_tracking = SweepTracking(
            self.ledger, self.spool, tracking, clock, enabled=bool(config.mlflow_url)
        )
        self.sweeps = self._sweeps()
        self.firing = Firing(self.ledger, self.service, self.sweeps, clock)
        self.schedules = Schedules(self.ledger, self.firing, clock)
        self.sweep_views = SweepViews(self.ledger, self.spool, views, clock, config.mlflow_url)
        self.reporting = self._reporting(files, views)
        self.top = self._top(views)
        self.loop = self._loop()
        self.wording = Wording(self.ledger, self.spool, config.mlflow_url)
        targets, sender = TargetFile(config.home.notify_file), Sender(clock=clock)
        self.notifier = self._notifier(targets, sender)
        self._reports = ThreadPoolExecutor(1, thread_name_prefix="report")
        self.sweep_tracking.listeners += [self._tell_sweep, self._keep_report]
        self.telling = Telling(targets, self.notifier, sender, self.ledger, clock)
        self.shipper = (
            Shipper(self.spool, lambda: MlflowSink(config.mlflow_url)) if config.mlflow_url else None
        )

    def _outcomes(self, tracking: Tracking) -> Outcomes:
        return Outcomes(
            self.ledger,
            self.spool,
            self.store,
            self.live,
            tracking,
            self.energy,
            self._clock,
            self._release,
            self._attempt_ended,
            self._share,
        )

    def _beats(self, files: RunFiles, tracking: Tracking) -> Beats:
        return Beats(
            self.ledger,
            self.spool,
            files,
            self.live,
            self.outcomes,
            tracking,
            self.energy,
            self._clock,
            self.wake,
            self._share,
            self.config.window_grace_s,
        )

    def _service(self, files: RunFiles, tracking: Tracking) -> Service:
        return Service(
            self.ledger,
            self.spool,
            self.store,
            files,
            self.live,
            self.watcher,
            self.scheduling,
            self.estimates,
            tracking,
            self.energy,
            self._clock,
            self.config.mlflow_url,
            self.wake,
        )

    def _sweeps(self) -> Sweeps:
        rounds = SweepRound(
            self.ledger,
            self.spool,
            self._clock,
            self.sweep_tracking,
            lambda sweep: Search(sweep.spec),
            lambda resume_from: resolve_origin(resume_from, self.ledger, self.store),
            self.wake,
            lambda: self.scheduling.draining,
        )
        return Sweeps(self.ledger, rounds, self.sweep_tracking, self._clock)

    def _reporting(self, files: RunFiles, views: Views) -> Reporting:
        return Reporting(
            self.ledger,
            self.spool,
            files,
            views,
            Sources(
                run=self.service.detail,
                sweep=self.sweep_views.detail,
                checkpoints=self.keeping.checkpoints,
                compare_links=self.service.compare_links,
                importance=importance,
            ),
            self._clock,
            tracked=bool(self.config.mlflow_url),
        )

    def _top(self, views: Views) -> Top:
        return Top(
            self.ledger,
            self.live,
            self.board,
            self.scheduling,
            self.watcher,
            views,
            self.machines,
            self.schedules,
            self.energy,
            Today(self.ledger, self._clock),
            Curves(self.spool, CURVES),
            self._clock,
        )

    def _loop(self) -> Loop:
        rooms = self.scheduling.rooms
        sight = Sight(
            self.ledger, self.live, self.outcomes, self.probes, self.health, self.book, rooms, self._clock
        )
        return Loop(
            self.config,
            self.ledger,
            self.spool,
            self.gateway,
            self.watcher,
            self.live,
            self.outcomes,
            self.scheduling,
            sight,
            Deadlines(self.ledger, self.outcomes, self._clock),
            self.board,
            self.tariffs.tariff,
            self._clock,
        )

    def _notifier(self, targets: TargetFile, sender: Sender) -> Notifier:
        notifier = Notifier(self.ledger, targets, self.wording.ended, sender, self._clock)
        stuck = Stuck(
            self.ledger, self.live, self.board, self.scheduling, self.watcher, self._clock, self._tell_stuck
        )
        notifier.look_out(NoticeKind.STUCK, stuck.look)
        race = Best(self.ledger, self.spool, self.board, self._clock, self._tell_best)
        notifier.look_out(NoticeKind.BEST, race.look)
        return notifier

    def _tell_stuck(self, run: RunRecord, key: str, what: str, lines: list[str]) -> None:
        title, body = texts.stuck(run, what, lines, self.wording.links(run))
        name, experiment = run.spec.name, run.spec.experiment
        self.notifier.tell(NoticeKind.STUCK, run.id, title, body, key=key, name=name, experiment=experiment)

    def _tell_best(self, run: RunRecord, mark: best.Mark, before: best.Mark) -> None:
        now, then = (mark.step, mark.value), (before.name, before.value)
        title, body = texts.best(run, now, then, self.wording.links(run))
        name, experiment = run.spec.name, run.spec.experiment
        about, which = best.subject(best.race_of(run)), best.key(mark)
        self.notifier.tell(NoticeKind.BEST, about, title, body, key=which, name=name, experiment=experiment)

    def _tell_sweep(self, sweep: SweepRecord) -> None:
        view = self.sweep_views.sweep(sweep)
        title, body = texts.sweep(view, pages(self.spool, self.config.mlflow_url, sweep.id))
        name, experiment = sweep.spec.name, sweep.spec.base.experiment
        key = sweep.ended_at.isoformat() if sweep.ended_at else ""
        self.notifier.tell(NoticeKind.SWEEP, sweep.id, title, body, key=key, name=name, experiment=experiment)

    def _keep_report(self, sweep: SweepRecord) -> None:
        """Have the sweep's page made beside everything else: it takes a moment."""
        self._reports.submit(self._store_report, sweep.id)

    def _store_report(self, sweep_id: str) -> None:
        try:
            self.reporting.store(sweep_id)
        except Exception:
            # The edge of a thread: a page that cannot be made must be heard of.
            log.exception("the report of sweep %s could not be made", sweep_id)

    def start(self) -> None:
        """Begin to watch, decide and ship."""
        self.watcher.start()
        self.loop.start()
        self.sweeps.start()
        self.firing.start()
        self.keeping.start()
        self.notifier.start()
        if self.shipper:
            self.shipper.start()
        log.info("controller ready at %s", self.config.url)

    def stop(self) -> None:
        """End in order; running attempts go on without us."""
        self.firing.stop()
        self.sweeps.stop()
        self.loop.stop()
        self.probes.close()
        self.keeping.stop()
        self.notifier.stop()
        self._reports.shutdown(wait=True)
        self.watcher.stop()
        if self.shipper:
            self.shipper.stop()
        self.gateway.close()
        self.spool.close()
        self.ledger.close()

    def drain(self) -> int:
        """Start nothing new and order every attempt to save; the number of attempts that have not ended."""
        self.scheduling.draining = True
        return self.service.shut_down()

    def tariff(self) -> TariffView:
        """What electricity costs, and what now."""
        return self.tariffs.view(self._clock.now())

    def set_tariff(self, spec: TariffSpec | None) -> TariffView:
        """Put another tariff in place of the present one; None: none."""
        self.tariffs.set(spec)
        self.board.tariff_changed()
        self.scheduling.forget_shown()
        self.wake()
        return self.tariff()

    def wake(self) -> None:
        """Something changed: let the loop look now."""
        self.loop.wake()

    def _attempt_ended(self, attempt: AttemptRecord) -> None:
        self.health.ended(attempt)
        self.estimates.ended(attempt)

    def _share(self, attempt: AttemptRecord) -> float:
        return gpu_share(self.watcher.fleet, attempt)

    def _release(self, attempt: AttemptRecord) -> None:
        self.loop.release(attempt)
