"""The training loop.

Step k is the state after k optimizer updates, and everything logged at step k was measured with the weights
of step k: ``val/loss`` by an evaluation, ``train/loss`` on the batch of the update that leads to step k + 1.
So step numbers are nanoGPT's iteration numbers. nanoGPT makes one more update after its last evaluation, at
iteration `max_iters`; here a run ends with that evaluation, and its final weights are the evaluated ones.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from orchestrator.contract import DATASET_FILE, EXIT_SAVED, RunContext
from trainer import checkpoint
from trainer.checkpoint import Evaluation, Restored, State
from trainer.config import TrainerConfig
from trainer.data import Batches, load_dataset
from trainer.device import choose_hardware
from trainer.engine import EagerEngine, Engine
from trainer.errors import TrainerError, UserError
from trainer.evaluate import Evaluator
from trainer.model import GPT
from trainer.optimizer import learning_rate
from trainer.progress import Meter, introduction, say, step_line
from trainer.rng import Stream, stream_seed
from trainer.sample import generate


def train(config: TrainerConfig, context: RunContext, folder: Path, restore_dir: Path | None = None) -> int:
    """Train in this process; checkpoints go to `folder`. Returns the exit code.

    Raises:
        TrainerError: training cannot go on; the message explains it.
    """
    try:
        return Training(config, context, folder, restore_dir).run()
    except OSError as e:
        raise TrainerError(f"cannot go on: {e}") from e
    except RuntimeError as e:
        memory = e if isinstance(e, torch.OutOfMemoryError) else e.__context__
        if isinstance(memory, torch.OutOfMemoryError):  # also where it spoiled the recording of a CUDA graph
            reason = ". ".join(str(memory).split(". ")[:2])  # the rest are figures of the allocator
            raise TrainerError(f"out of GPU memory: {reason}; {_less_memory(config)}") from e
        reason = str(e).strip().partition("\n")[0]
        if "DefaultCPUAllocator" in reason:
            raise TrainerError(f"out of memory: {reason}; {_less_memory(config)}") from e
        if type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainerError(f"torch.compile failed: {reason}; it works without: compile: false") from e
        raise


class Training:
    """One run of the loop, from scratch or from a checkpoint."""

    def __init__(
        self, config: TrainerConfig, context: RunContext, folder: Path, restore_dir: Path | None = None
    ) -> None:
        self.config = config
        self.context = context
        self.folder = folder
        self.hardware = choose_hardware(config, context)
        self.dataset = load_dataset(config)
        self.batches = Batches(self.dataset, config, self.hardware.device)
        seed = stream_seed(config.seed, Stream.INIT)
        self.model = GPT(config, len(self.dataset.vocabulary), seed).to(self.hardware.device)
        self.engine: Engine = EagerEngine(config, self.model, self.batches, self.hardware)
        self.optimizer = self.engine.optimizer
        stop = context.stop_requested
        self.evaluator = Evaluator(self.model, self.engine.forward, self.batches, self.hardware, stop)
        self.meter = Meter(config, self.hardware, self.model.parameter_count(positions=False))
        self.step = 0
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.evaluation: Evaluation | None = None
        self.best: Evaluation | None = None
        self.train_loss: float | None = None
        introduction(config, self.dataset, self.model, self.hardware)
        if context.run_id is not None and context.artifact_dir is not None:
            self.dataset.describe(context.artifact_dir / DATASET_FILE)
        if restore_dir is not None:
            self._restore(checkpoint.read(restore_dir))

    def run(self) -> int:
        """Train to `max_steps` or until asked to stop; returns the exit code."""
        while True:
            if self._evaluation_due():
                self.evaluate()
            if self._checkpoint_due():
                self.save()
            if self.context.stop_requested():
                return self._stop()
            if self.step >= self.config.max_steps:
                return self._finish()
            self.update()

    def update(self) -> None:
        """One optimizer update, from step k to k + 1, on B sequences of T tokens."""
        k = self.step
        self.meter.count()
        loss, norm = self.engine.update(k)
        self.step = k + 1
        if k % self.config.log_interval == 0:
            self._log_step(k, loss.item(), norm.item(), learning_rate(self.config, k))

    def _log_step(self, step: int, loss: float, norm: float, lr: float) -> None:
        self._check_finite(step, "the training loss", loss)
        self._check_finite(step, "the gradient norm", norm)
        self.train_loss = loss
        speed = self.meter.lap()
        self.context.log(step, {"train/loss": loss, "lr": lr, "grad_norm": norm, **speed})
        say(step_line(step, loss, lr, speed))

    def _evaluation_due(self) -> bool:
        if self.evaluation is not None and self.evaluation.step == self.step:
            return False
        return self.step % self.config.eval_interval == 0 or self.step >= self.config.max_steps

    def evaluate(self) -> None:
        """Estimate both losses at this step; gives up without a trace when asked to stop meanwhile."""
        with self.meter.paused():
            found = self.evaluator.estimate(self.step)
        if found is None:
            return
        self._check_finite(self.step, "the validation loss", found.val)
        self.evaluation = found
        if self.best is None or found.val < self.best.val:
            self.best = found
        losses = {"train/loss_eval": found.train, "val/loss": found.val, "best/val_loss": self.best.val}
        self.context.log(self.step, losses)
        say(f"step {self.step}: train loss {found.train:.4f}, val loss {found.val:.4f}")

    def _checkpoint_due(self) -> bool:
        if self.step in (0, self.saved_step):
            return False
        every, minutes = self.config.checkpoint_interval, self.config.checkpoint_minutes
        if every and self.step % every == 0:
            return True
        return bool(minutes) and time.monotonic() - self.saved_at >= minutes * 60.0

    def save(self) -> None:
        """Publish a checkpoint of this step."""
        with self.meter.paused():
            probe = self.evaluator.probe()
            self._check_finite(self.step, "the probe loss", probe)
            weights, moments = dict(self.model.named_parameters()), self.optimizer.state()
            final = checkpoint.save(self.context, self.folder, self._state(probe), weights, moments)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        say(f"step {self.step}: saved {final}")

    def _state(self, probe_loss: float) -> State:
        return State(
            step=self.step,
            config=self.config,
            dataset=self.dataset.name,
            dataset_sha256=self.dataset.sha256,
            vocabulary=self.dataset.vocabulary.characters,
            vocabulary_size=self.dataset.vocabulary.size,
            evaluation=self.evaluation,
            best=self.best,
            train_loss=self.train_loss,
            probe_loss=probe_loss,
            environment=self.hardware.environment(),
        )

    def _restore(self, restored: Restored) -> None:
        """Go on from a checkpoint, once the probe batch shows that these are the same weights."""
        state = restored.state
        checkpoint.check_fits(state, self.config, self.dataset)
        checkpoint.copy_into(dict(self.model.named_parameters()), restored.model, "model")
        checkpoint.copy_into(self.optimizer.state(), restored.optimizer, "optimizer")
        self.optimizer.resume_at(state.step)
        self.step, self.saved_step = state.step, state.step
        self.evaluation, self.best, self.train_loss = state.evaluation, state.best, state.train_loss
        say(f"resumed from {restored.directory} at step {state.step}")
        for key, (old, new) in checkpoint.changed_settings(state.config, self.config).items():
            say(f"changed since the checkpoint: {key} {old} -> {new}")
        self._compare_probe(state)
        if self.step >= self.config.max_steps:  # nothing to train: evaluate and publish this step again
            self.evaluation, self.saved_step = None, None

    def _compare_probe(self, state: State) -> None:
        now = self.evaluator.probe()
        delta = abs(now - state.probe_loss) / abs(state.probe_loss)
        self.context.log(self.step, {"probe/delta": delta})
        say(
            f"probe batch: loss {now:.8f}, {state.probe_loss:.8f} when saved; relative difference {delta:.1e}"
        )
        if not delta <= self.config.probe_tolerance:
            raise UserError(
                f"the restored weights give the probe batch the loss {now} instead of {state.probe_loss}: "
                f"relative difference {delta:.2e}, above probe_tolerance {self.config.probe_tolerance}; "
                f"saved on {state.environment.device_name} with PyTorch {state.environment.torch}, "
                f"restored on {self.hardware.name()} with {torch.__version__}"
            )

    def _stop(self) -> int:
        if self.saved_step != self.step:
            self.save()
        say(f"stopped at step {self.step} of {self.config.max_steps}; resume to go on")
        return EXIT_SAVED

    def _finish(self) -> int:
        """The last measurements and checkpoint, a sample and a summary."""
        self.hardware.seed_dropout(stream_seed(self.config.seed, Stream.DROPOUT, self.step))
        self.train_loss = self.evaluator.batch_loss(self.step)
        self.context.log(self.step, {"train/loss": self.train_loss})
        if self.config.final_eval == "full" and (whole := self.evaluator.whole_val()) is not None:
            self.context.log(self.step, {"val/loss_full": whole})
            say(f"step {self.step}: val loss over the whole split {whole:.4f}")
        if self.saved_step != self.step:
            self.save()
        if self.config.sample_tokens:
            self._write_sample()
        if (last := self.evaluation) and (best := self.best):
            losses = f"train loss {last.train:.4f}, val loss {last.val:.4f}"
            say(f"done at step {self.step}: {losses}; best val loss {best.val:.4f} at step {best.step}")
        return 0

    def _write_sample(self) -> None:
        vocabulary = self.dataset.vocabulary
        text = generate(
            self.model.eval(),
            vocabulary,
            tokens=self.config.sample_tokens,
            prompt=vocabulary.opening,
            seed=self.config.seed,
            stop=self.context.stop_requested,
        )
        directory = self.context.artifact_dir or self.folder
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "sample.txt").write_text(text + "\n", encoding="utf-8")
        say(f"sample:\n{text}\n")

    def _check_finite(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainerError(
                f"{what} is {value} at step {step}: training diverged, and this step was not saved; lower "
                f"learning_rate ({self.config.learning_rate}) or set grad_clip ({self.config.grad_clip})"
            )


def _less_memory(config: TrainerConfig) -> str:
    return f"raise micro_batches ({config.micro_batches}) or lower batch_size ({config.batch_size})"
