"""Puts the controller together and gives its parts one start and one stop."""

from __future__ import annotations

import logging

from orchestrator.clock import SYSTEM, Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control.beats import Beats
from orchestrator.control.board import Board
from orchestrator.control.config import ControllerConfig
from orchestrator.control.deadlines import Deadlines
from orchestrator.control.estimates import Estimates
from orchestrator.control.exclusions import NodeHealth
from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.keeping import Keeping
from orchestrator.control.live import LiveBoard
from orchestrator.control.logs import RunFiles
from orchestrator.control.loop import Loop
from orchestrator.control.machines import Machines
from orchestrator.control.nodebook import Drains, NodeBook
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.probes import Probes
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.service import Service
from orchestrator.control.shares import gpu_share
from orchestrator.control.sight import Sight
from orchestrator.control.tariffs import TariffBook
from orchestrator.control.tracking import Tracking
from orchestrator.control.views import Views
from orchestrator.domain.records import AttemptRecord
from orchestrator.messages import TariffView
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
        book = NodeBook(Drains(config.home.drains_file, clock), clock)
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
            gateway, self.wake, lambda node: self.health.told(book.told(node)), lambda: self.board.idle
        )
        self.scheduling = Scheduling(self.board, self.ledger, self.estimates, clock, config.upgrade_rest_s)
        views = Views(self.ledger, self.spool, self.live, self.scheduling, self.estimates, self.watcher)
        self.machines = Machines(book, self.watcher, views)
        self.keeping = Keeping(self.ledger, self.store, clock)
        self.probes = Probes(gateway, clock)
        files = RunFiles(config.home.run_logs)
        tracking = Tracking(self.ledger, self.spool, self.store, clock, enabled=bool(config.mlflow_url))
        self.outcomes = self._outcomes(tracking)
        self.beats = self._beats(files, tracking)
        self.service = self._service(files, tracking)
        self.loop = self._loop()
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
            self._clock,
            self.config.mlflow_url,
            self.wake,
        )

    def _loop(self) -> Loop:
        rooms = self.scheduling.rooms
        sight = Sight(self.ledger, self.live, self.outcomes, self.probes, self.health, rooms, self._clock)
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

    def start(self) -> None:
        """Begin to watch, decide and ship."""
        self.watcher.start()
        self.loop.start()
        self.keeping.start()
        if self.shipper:
            self.shipper.start()
        log.info("controller ready at %s", self.config.url)

    def stop(self) -> None:
        """End in order; running attempts go on without us."""
        self.loop.stop()
        self.probes.close()
        self.keeping.stop()
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
