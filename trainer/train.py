"""The training loop.

Step k is the state after k optimizer updates. Everything logged at step k was measured with the weights of step k:
``val/loss`` by an evaluation, ``train/loss`` on the batch of the update that leads to step k + 1. These are
nanoGPT's iteration numbers. nanoGPT makes one more update after its last evaluation, at iteration `max_iters`;
here the run ends with that evaluation, so the final weights are those that were evaluated.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.contract import EXIT_SAVED, RunContext
from trainer import checkpoint
from trainer.checkpoint import Evaluation, Restored, State
from trainer.config import TrainerConfig
from trainer.corpus import find_corpus
from trainer.data import Batches, Split, tokenise
from trainer.device import choose_hardware
from trainer.errors import TrainerError, UserError
from trainer.model import GPT
from trainer.optimizer import AdamW, learning_rate
from trainer.progress import Meter, say, step_line
from trainer.rng import Stream, stream_seed
from trainer.sample import generate


class Training:
    """One run of the loop, from scratch or from a checkpoint."""

    def __init__(
        self, config: TrainerConfig, context: RunContext, folder: Path, restore_dir: Path | None = None
    ) -> None:
        self.config = config
        self.context = context
        self.folder = folder
        self.hardware = choose_hardware(config, context)
        self.dataset = tokenise(find_corpus(config.dataset), config.block_size)
        self.batches = Batches(self.dataset, config, self.hardware.device)
        seed = stream_seed(config.seed, Stream.INIT)
        self.model = GPT(config, len(self.dataset.vocabulary), seed).to(self.hardware.device)
        self.optimizer = AdamW(self.model.named_parameters(), config)
        self.forward: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        self.meter = Meter(config, self.hardware, self.model.parameter_count(positions=False))
        self.step = 0
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.evaluation: Evaluation | None = None
        self.best: Evaluation | None = None
        self.train_loss: float | None = None
        self._introduce()
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
        """One optimizer step, from step k to k + 1, on B sequences of T tokens."""
        k = self.step
        self.meter.count()
        lr = learning_rate(self.config, k)
        loss = self._batch_loss(k)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self.config.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step(lr)
        self.step = k + 1
        if k % self.config.log_interval == 0:
            self._log_step(k, loss.item(), norm.item(), lr)

    def _batch_loss(self, step: int) -> Tensor:
        x, y = self.batches.train(step)  # (B, T) each
        self.hardware.seed_dropout(stream_seed(self.config.seed, Stream.DROPOUT, step))
        with self.hardware.autocast():
            _, loss = self.forward(x, y)
        return loss  # type: ignore[no-any-return]

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
            train, val = self._estimate("train"), self._estimate("val")
        if train is None or val is None:
            return
        self._check_finite(self.step, "the validation loss", val)
        self.evaluation = Evaluation(step=self.step, train=train, val=val)
        if self.best is None or val < self.best.val:
            self.best = self.evaluation
        self.context.log(
            self.step, {"train/loss_eval": train, "val/loss": val, "best/val_loss": self.best.val}
        )
        say(f"step {self.step}: train loss {train:.4f}, val loss {val:.4f}")

    def _estimate(self, split: Split) -> float | None:
        return self._mean_loss(split, self.batches.evaluation(split, self.step))

    @torch.no_grad()
    def _mean_loss(self, split: Split, batches: list[Tensor]) -> float | None:
        """Mean loss over sequences that begin at given places; None when asked to stop meanwhile."""
        self.forward.eval()
        total, count = 0.0, 0
        for starts in batches:
            if self.context.stop_requested():
                break
            x, y = self.batches.at(split, starts)
            with self.hardware.autocast():
                _, loss = self.forward(x, y)
            total += loss.item() * len(starts)
            count += len(starts)
        self.forward.train()
        return total / count if count == sum(map(len, batches)) else None

    @torch.no_grad()
    def _probe_loss(self) -> float:
        """fp32 loss of the probe batch, without dropout and not compiled."""
        self.model.eval()
        loss = self.model(*self.batches.probe())[1].item()
        self.model.train()
        return float(loss)

    def _checkpoint_due(self) -> bool:
        if self.step in (0, self.saved_step):
            return False
        every, minutes = self.config.checkpoint_interval, self.config.checkpoint_minutes
        if every and self.step % every == 0:
            return True
        return bool(minutes) and time.monotonic() - self.saved_at >= minutes * 60.0

    def save(self) -> Path:
        """Publish a checkpoint of this step."""
        with self.meter.paused():
            probe = self._probe_loss()
            self._check_finite(self.step, "the probe loss", probe)
            state = State(
                step=self.step,
                config=self.config,
                dataset=self.dataset.name,
                dataset_sha256=self.dataset.sha256,
                vocabulary=self.dataset.vocabulary.characters,
                evaluation=self.evaluation,
                best=self.best,
                train_loss=self.train_loss,
                probe_loss=probe,
                environment=self.hardware.environment(),
            )
            weights = dict(self.model.named_parameters())
            final = checkpoint.save(self.context, self.folder, state, weights, self.optimizer.state())
        self.saved_step, self.saved_at = self.step, time.monotonic()
        say(f"step {self.step}: saved {final}")
        return final

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
        probe = self._probe_loss()
        delta = abs(probe - state.probe_loss) / abs(state.probe_loss)
        self.context.log(self.step, {"probe/delta": delta})
        say(
            f"probe batch: {state.probe_loss:.8f} when saved, {probe:.8f} now, relative difference {delta:.1e}"
        )
        if not delta <= self.config.probe_tolerance:
            raise UserError(
                f"the restored weights give another loss on the probe batch: {probe} instead of {state.probe_loss}, "
                f"relative difference {delta:.2e} above probe_tolerance {self.config.probe_tolerance}; "
                f"saved on {state.environment.device_name} with PyTorch {state.environment.torch}"
            )

    def _stop(self) -> int:
        if self.saved_step != self.step:
            self.save()
        say(f"stopped at step {self.step} of {self.config.max_steps}; resume to go on")
        return EXIT_SAVED

    def _finish(self) -> int:
        """The last checkpoint, a sample and a summary."""
        if self.config.final_eval == "full":
            whole = self._mean_loss("val", self.batches.whole("val"))
            if whole is not None:
                self.context.log(self.step, {"val/loss_full": whole})
                say(f"step {self.step}: val loss over the whole split {whole:.4f}")
        if self.saved_step != self.step:
            self.save()
        if self.config.sample_tokens:
            self._write_sample()
        if self.evaluation and self.best:
            say(
                f"done at step {self.step}: train loss {self.evaluation.train:.4f}, val loss {self.evaluation.val:.4f}, "
                f"best val loss {self.best.val:.4f} at step {self.best.step}"
            )
        return 0

    def _write_sample(self) -> None:
        text = generate(
            self.model.eval(),
            self.dataset.vocabulary,
            tokens=self.config.sample_tokens,
            prompt="\n"
            if "\n" in self.dataset.vocabulary.characters
            else self.dataset.vocabulary.characters[0],
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
                f"{what} is {value} at step {step}: training diverged and no checkpoint of it was written; "
                f"lower learning_rate ({self.config.learning_rate}) or set grad_clip ({self.config.grad_clip})"
            )

    def _introduce(self) -> None:
        data, hardware = self.dataset, self.hardware
        say(
            f"{data.name}: {len(data.train):,} characters to train, {len(data.val):,} to validate, "
            f"{len(data.vocabulary)} distinct"
        )
        say(
            f"model: {self.model.parameter_count():,} parameters; batch: {self.config.batch_size} x "
            f"{self.config.block_size} = {self.config.batch_size * self.config.block_size:,} tokens per step"
        )
        dtype = str(hardware.dtype).removeprefix("torch.")
        where = f"{hardware.threads} threads" if hardware.device.type == "cpu" else hardware.name()
        say(
            f"device: {hardware.device.type} ({where}), {dtype}, deterministic: {str(hardware.deterministic).lower()}"
        )
