"""The training loop.

Step k is the state after k optimizer updates, and everything logged at step k was measured with the weights
of step k: ``val/loss`` by an evaluation, ``train/loss`` on the batch of the update that leads to step k + 1.
So step numbers are nanoGPT's iteration numbers. nanoGPT makes one more update after its last evaluation, at
iteration `max_iters`; here a run ends with that evaluation, and its final weights are the evaluated ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orchestrator.contract import DATASET_FILE, EXIT_SAVED, RunContext
from trainer import checkpoint, guards, memory
from trainer.checkpoint import Evaluation, Restored, State
from trainer.config import TrainerConfig
from trainer.data import Batches, load_dataset
from trainer.device import choose_hardware
from trainer.engine import Engine, build_engine
from trainer.errors import NoRoom, TrainerError, UserError
from trainer.evaluate import Evaluator
from trainer.foreign import begin_from
from trainer.model_fast import build_model
from trainer.optimizer import learning_rate
from trainer.points import Points
from trainer.programs import NEVER
from trainer.progress import Meter, introduction, say, step_line
from trainer.ranks import Accord, join
from trainer.rng import Stream, stream_seed
from trainer.sample import leave_sample
from trainer.snapshot import Snapshot, Writer

_AGAIN_S, _AT_THE_END_S = 30.0, (0.5, 1.0, 2.0, 4.0)
"""Pauses after a checkpoint that the disk had no room for. What the agent stores meanwhile makes room."""


def train(
    config: TrainerConfig,
    context: RunContext,
    folder: Path,
    restore_dir: Path | None = None,
    use: Callable[[Training], int] | None = None,
) -> int:
    """Train in this process; checkpoints go to `folder`. Returns the exit code.

    `use` is what is done with the training instead of :meth:`Training.run`.

    Raises:
        TrainerError: training cannot go on; the message explains it.
    """
    training = None
    try:
        training = Training(config, context, folder, restore_dir)
        return (use or Training.run)(training)
    except OSError as e:
        raise TrainerError(f"cannot go on: {e}") from e
    except RuntimeError as e:
        shortage = memory.gpu_shortage(e, context.gpu_memory)
        if shortage is None:
            memory.explain(e, config)
            raise
    # Outside the handler: the error holds on to everything that the failed step had in memory.
    if training is None:
        raise UserError(f"out of GPU memory: {shortage}; {memory.less_memory(config)}")
    training.engine.close()
    del training.engine, training.optimizer  # with the memory of a recorded graph
    advice = memory.what_fits(config, training.model, training.batches, training.hardware)
    raise UserError(f"out of GPU memory: {shortage}; {advice}")


class Training:
    """One run of the loop, from scratch or from a checkpoint.

    :meth:`close` must be called at the end; :meth:`run` does it.
    """

    def __init__(
        self, config: TrainerConfig, context: RunContext, folder: Path, restore_dir: Path | None = None
    ) -> None:
        self.config = config
        self.context = context
        self.folder = folder
        self.hardware = choose_hardware(config, context)
        self.dataset = load_dataset(config)
        self.ranks = join(self.hardware.device)
        rank, world = self.ranks.rank, self.ranks.world
        self.batches = Batches(self.dataset, config, self.hardware.device, rank, world)
        seed = stream_seed(config.seed, Stream.INIT)
        self.model = build_model(config, len(self.dataset.vocabulary), seed).to(self.hardware.device)
        self.engine: Engine = build_engine(
            config,
            self.model,
            self.batches,
            self.hardware,
            self.ranks,
            len(self.dataset.vocabulary),
            self._say,
        )
        self.optimizer = self.engine.optimizer
        self.evaluator = Evaluator(
            self.model,
            self.model,
            self.batches,
            self.hardware,
            context.stop_requested,
            ranks=self.ranks,
            parts=config.micro_batches,
        )
        self.meter = Meter(config, self.hardware, self.model.parameter_count(positions=False), world=world)
        at_once = self.hardware.device.type == "cpu" or world > 1  # ranks must find the same at the same step
        self.points = Points(0.0) if at_once else Points()
        self.snapshot = Snapshot(self.model, self.optimizer.state(), self.batches.probe())
        self.writer = Writer()
        self.accord = Accord(self.ranks)
        self.step = 0
        self.saved_step: int | None = None
        self.saved_at, self._again_at = time.monotonic(), math.inf
        self.evaluation: Evaluation | None = None
        self.best: Evaluation | None = None
        self.since_best = 0
        self.train_loss: float | None = None
        self._kept: State | None = None
        if self.ranks.is_writer:
            introduction(config, self.dataset, self.model, self.hardware, self.engine.deterministic, world)
            if context.run_id is not None and context.artifact_dir is not None:
                self.dataset.describe(context.artifact_dir / DATASET_FILE)
        if restore_dir is not None and not begin_from(restore_dir, self.model, self._say):
            self._restore(checkpoint.read(restore_dir))
        self._compare_ranks()
        if config.nonfinite == "rewind":
            self._keep(self._state())

    def run(self) -> int:
        """Train to `max_steps`, or until it is enough or asked to stop; returns the exit code."""
        try:
            code = self._loop()
        except BaseException:
            if (error := self.writer.close()) is not None:
                say(f"the checkpoint of step {self.saved_step} was not written either: {error}")
            raise
        self.close()
        return code

    def close(self) -> None:
        """Wait for the last checkpoint and leave the other ranks."""
        self.engine.close()
        self.writer.close()
        self.ranks.close()

    def _loop(self) -> int:
        while True:
            self._settle(self.writer.poll)
            if self._evaluation_due():
                self.evaluate()
            by_time = self.accord.ask(self.step, self.context.stop_requested(), self._minutes_passed())
            if self._checkpoint_due(by_time):
                self.save()
            if self.accord.stop:
                return self._stop()
            if self._complete():
                return self._finish()
            if self._at_rung():
                return self._stop()
            self.update()

    def update(self) -> None:
        """One optimizer update, from step k to k + 1, on B sequences of T tokens."""
        k = self.step
        self.meter.count()
        loss, norm = self.engine.update(k)
        self.step = k + 1
        if k % self.config.log_interval == 0 and self.points.add(k, loss, norm):
            self._log_points()

    def _log_points(self) -> bool:
        """Log the points that are held. Whether the loss and gradient of each update so far were finite.

        If not, the run has gone back; TrainerError where it cannot. Waits for the device.
        """
        points = self.points.take()
        bad = int(self.engine.first_bad.item())
        sound = [point for point in points if point.step < bad]
        speed = self.meter.lap() if sound else {}
        for step, loss, norm in sound:
            self.train_loss = loss
            lr = learning_rate(self.config, step)
            self._log(step, {"train/loss": loss, "lr": lr, "grad_norm": norm, **speed})
            self._say(step_line(step, loss, lr, speed))
        if bad >= self.step:
            return True
        values = next(((loss, norm) for step, loss, norm in points if step == bad), None)
        self._diverged(bad, (guards.non_finite(*values) if values else None) or guards.NOT_FINITE)
        return False

    def _evaluation_due(self) -> bool:
        if self.evaluation is not None and self.evaluation.step == self.step:
            return False
        return (
            self.step % self.config.eval_interval == 0
            or self.step >= self.config.max_steps
            or self._at_rung()
        )

    def _at_rung(self) -> bool:
        """Whether a sweep wants to compare the run with others at this step, before it goes on."""
        return self.context.pause_step is not None and self.step >= self.context.pause_step

    def evaluate(self) -> None:
        """Estimate both losses at this step; gives up without a trace when asked to stop meanwhile."""
        if not self._log_points():
            return
        with self.meter.paused():
            found = self.evaluator.estimate(self.step)
        if found is None:
            self.accord.stop = True  # all ranks know: they gave up together
            return
        if not math.isfinite(found.val):
            self._diverged(self.step - 1, f"the validation loss is {found.val}")
            return
        self.evaluation = found
        self.since_best += 1
        if self.best is None or found.val < self.best.val or self.best.step == self.step:
            self.best, self.since_best = found, 0
        losses = {"train/loss_eval": found.train, "val/loss": found.val, "best/val_loss": self.best.val}
        self._log(self.step, losses)
        self._say(f"step {self.step}: train loss {found.train:.4f}, val loss {found.val:.4f}")

    def _minutes_passed(self) -> bool:
        now, minutes = time.monotonic(), self.config.checkpoint_minutes
        return now >= self._again_at or (bool(minutes) and now - self.saved_at >= minutes * 60.0)

    def _checkpoint_due(self, by_time: bool) -> bool:
        if self.step in (0, self.saved_step):
            return False
        if by_time or (self.config.checkpoint_interval and self.step % self.config.checkpoint_interval == 0):
            return True
        return self.config.checkpoint_best and self.best is not None and self.best.step == self.step

    def save(self) -> None:
        """Take a snapshot of this step; it is written and published while training goes on.

        Waits for the checkpoint before, if that is still being written. :attr:`writer` tells when it is done.
        """
        if self.config.nonfinite == "rewind" and not self._log_points():
            return  # otherwise the writer looks, so that training does not wait for the device
        self._settle(self.writer.wait)
        state = self._state()
        self._keep(state)
        if self.ranks.is_writer:
            self.writer.start(partial(self._write, state))
        self.saved_step, self.saved_at, self._again_at = self.step, time.monotonic(), math.inf

    def _settle(self, ask: Callable[[], None]) -> None:
        """Hear by `ask` how the last checkpoint ended; training goes on where there was no room for it."""
        try:
            ask()
        except NoRoom as e:
            self.saved_step, self._again_at = None, time.monotonic() + _AGAIN_S
            self._log(self.step, {"checkpoint/no_room": 1.0})
            self._say(f"{e}; training goes on and tries again in {_AGAIN_S:g} s")

    def _keep(self, state: State) -> None:
        """Have a copy of this step, to be written, and to go back to."""
        if self.ranks.is_writer or self.config.nonfinite == "rewind":
            self.snapshot.take(self.engine.first_bad)
        self._kept = state

    def _write(self, state: State) -> None:
        """In the writer's thread: the snapshot as a published checkpoint."""
        taken = self.snapshot.collect()
        if (problem := guards.unsound(taken.first_bad, taken.probe_loss, state.step)) is not None:
            raise TrainerError(guards.divergence(*problem, self.config))
        state = state.model_copy(update={"probe_loss": taken.probe_loss})
        final = checkpoint.save(self.context, self.folder, state, taken.weights, taken.moments)
        say(f"step {state.step}: saved {final}")

    def _state(self) -> State:
        """All but the loss of the probe batch, which whoever writes it has to measure."""
        return State(
            step=self.step,
            config=self.config,
            dataset=self.dataset.name,
            dataset_sha256=self.dataset.sha256,
            vocabulary=self.dataset.vocabulary.characters,
            vocabulary_size=self.dataset.vocabulary.size,
            evaluation=self.evaluation,
            best=self.best,
            since_best=self.since_best,
            skipped=self.batches.skipped,
            train_loss=self.train_loss,
            probe_loss=math.nan,
            environment=self.hardware.environment(self.engine.compiled, self.engine.deterministic),
        )

    def _restore(self, restored: Restored) -> None:
        """Go on from a checkpoint, once the probe batch shows that these are the same weights."""
        state = restored.state
        checkpoint.check_fits(state, self.config, self.dataset)
        checkpoint.copy_into(dict(self.model.named_parameters()), restored.model, "model")
        checkpoint.copy_into(self.optimizer.state(), restored.optimizer, "optimizer")
        self._take_over(state)
        self.saved_step = state.step
        self._say(f"resumed from {restored.directory} at step {state.step}")
        for key, (old, new) in checkpoint.changed_settings(state.config, self.config).items():
            self._say(f"changed since the checkpoint: {key} {old} -> {new}")
        self._compare_probe(state)
        if self._complete():  # nothing to train: evaluate and publish this step again
            self.evaluation, self.saved_step = None, None
            self.since_best = max(0, self.since_best - 1)

    def _take_over(self, state: State) -> None:
        """Be where that state was; the weights and moments are there already."""
        self.step, self.train_loss = state.step, state.train_loss
        self.evaluation, self.best, self.since_best = state.evaluation, state.best, state.since_best
        self.batches.skipped = state.skipped
        self.optimizer.resume_at(state.step)

    def _compare_probe(self, state: State) -> None:
        now, then = self.evaluator.probe(), state.probe_loss
        delta = abs(now - then) / (abs(then) or 1.0)
        self._log(self.step, {"probe/delta": delta})
        self._say(f"probe batch: loss {now:.8f}, {then:.8f} when saved; relative difference {delta:.1e}")
        checkpoint.check_probe(state, self.config, now, delta, self.hardware.name())

    def _compare_ranks(self) -> None:
        """All ranks must begin at the same step of the same run."""
        if not self.ranks.same(self.step, *checkpoint.fingerprint(self._state())):
            raise UserError(
                f"the ranks do not begin alike: rank {self.ranks.rank} is at step {self.step}; give all of "
                "them the same configuration, text and checkpoint"
            )

    def _diverged(self, bad: int, what: str) -> None:
        """Go back to the last checkpoint and leave out the batches up to that of the update at step `bad`."""
        kept, rewinds = self._kept, len(self.batches.skipped)
        if self.config.nonfinite == "stop" or kept is None or bad < kept.step:
            raise TrainerError(guards.divergence(what, max(bad, 0), self.config))
        if rewinds >= self.config.max_rewinds:
            raise TrainerError(guards.divergence(what, bad, self.config, rewinds))
        with self.meter.paused():
            skipped = guards.rewound(self.batches.skipped, kept.step, bad)
            self.snapshot.put_back()
            self._take_over(kept)
            self.batches.skipped = skipped
            self.engine.first_bad.fill_(NEVER)
            self.accord.rewound(self.step)
            self._kept = kept.model_copy(update={"skipped": skipped})
        self._log(bad, {"guard/rewinds": float(rewinds + 1)})
        self._say(f"{what} at step {bad}: back to step {self.step} without {skipped[-1].batches} batches")

    def _complete(self) -> bool:
        return self.step >= self.config.max_steps or self._enough() is not None

    def _enough(self) -> str | None:
        """Why to end early."""
        here = self.evaluation is not None and self.evaluation.step == self.step
        val_loss = self.evaluation.val if here and self.evaluation else None
        return guards.enough(self.config.stop_when, val_loss, self.since_best)

    def _stop(self) -> int:
        self._log_points()
        self._save_last()
        self._say(f"stopped at step {self.step} of {self.config.max_steps}; resume to go on")
        return EXIT_SAVED

    def _save_last(self) -> None:
        for pause_s in (*_AT_THE_END_S, None):
            while self.saved_step != self.step:  # saving may go back by finding a bad step
                self.save()
            try:
                self.writer.wait()
                break
            except NoRoom as e:
                if pause_s is None:
                    raise
                self.saved_step = None
                self._say(f"{e}; tries again in {pause_s:g} s")
                time.sleep(pause_s)
        self.ranks.barrier()  # none ends before it is published

    def _finish(self) -> int:
        """The last measurements and checkpoint, a sample and a summary."""
        self.hardware.seed_dropout(stream_seed(self.config.seed, Stream.DROPOUT, self.step))
        self.train_loss = self.evaluator.batch_loss(self.step)
        self._log(self.step, {"train/loss": self.train_loss})
        if self.step < self.config.max_steps and (reason := self._enough()):
            self._log(self.step, {"stopped_early": 1.0})
            self._say(f"step {self.step}: stopped early, as stop_when says: {reason}")
        if self.config.final_eval == "full" and (whole := self.evaluator.whole_val()) is not None:
            self._log(self.step, {"val/loss_full": whole})
            self._say(f"step {self.step}: val loss over the whole split {whole:.4f}")
        self._save_last()
        if self.config.sample_tokens and self.ranks.is_writer:
            directory, stop = self.context.artifact_dir or self.folder, self.context.stop_requested
            leave_sample(self.model, self.dataset.vocabulary, self.config, directory, stop)
        if (last := self.evaluation) and (best := self.best):
            losses = f"train loss {last.train:.4f}, val loss {last.val:.4f}"
            self._say(f"done at step {self.step}: {losses}; best val loss {best.val:.4f} at step {best.step}")
        return 0

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        if self.ranks.is_writer:
            self.context.log(step, metrics)

    def _say(self, line: str) -> None:
        if self.ranks.is_writer:
            say(line)
