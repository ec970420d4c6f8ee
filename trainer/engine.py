"""What makes an optimizer update: the part of training that is fast or slow.

:class:`EagerEngine` uses PyTorch's kernels one by one and can start at once. :class:`SwitchingEngine` begins
with it and goes over to a compiled step as soon as there is one; both work on the same memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.compiled import CompiledEngine, order_for, workers
from trainer.compiling import Compiler, load
from trainer.config import TrainerConfig
from trainer.data import Batches
from trainer.device import Hardware
from trainer.errors import TrainerError
from trainer.flat import Buffers
from trainer.graph import GraphedUpdate
from trainer.library import LibraryError
from trainer.model_fast import LanguageModel
from trainer.muon import MuonAdamW, build_optimizer
from trainer.optimizer import AdamW, learning_rate
from trainer.orders import Programs
from trainer.programs import NEVER
from trainer.ranks import Ranks
from trainer.rng import Stream, stream_seed
from trainer.sharing import Request

_WORTHWHILE_S = 120.0
"""With `compile: auto`, what an uncompiled run would still take for compiling to begin."""
_ESTIMATE_STEPS, _ESTIMATE_S = 10, 2.0
_POLL_S = 0.5


class Engine(Protocol):
    """Changes a model's weights in place, one update after the other."""

    optimizer: AdamW | MuonAdamW
    """Its moments by name, and the number of updates that they have seen."""
    first_bad: Tensor
    """0-dim int64 on the device: the first step since this was last set to NEVER from which an update led on
    whose loss or gradient norm was not finite; NEVER if there was none. The same on all ranks."""

    @property
    def compiled(self) -> bool:
        """Whether updates are made by a compiled step now."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether a compiled step may take over later."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether repeating the run on the same device gives the same bits, interrupted or not."""
        ...

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """Make the update that leads from `step` to `step` + 1.

        The loss of its batch, of all ranks, and the norm of its gradient before clipping: 0-dim on the
        device, which has not been waited for. The next call may overwrite both.
        """
        ...

    def close(self) -> None:
        """End what runs beside the caller, and let go of what was recorded. No update may follow."""
        ...


class EagerEngine:
    """PyTorch's own kernels; on a GPU, recorded as a CUDA graph where the configuration says so."""

    def __init__(
        self,
        config: TrainerConfig,
        model: LanguageModel,
        batches: Batches,
        hardware: Hardware,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._model = model
        self._batches = batches
        self._hardware = hardware
        self._ranks = ranks or Ranks()
        self._step = torch.zeros((), dtype=torch.int64, device=hardware.device)
        self.first_bad = torch.full_like(self._step, NEVER)
        self.optimizer = build_optimizer(model.named_parameters(), config)
        graphed = config.cuda_graph and hardware.device.type == "cuda"
        self._graphed = GraphedUpdate(self._eagerly) if graphed else None
        self._compute = self._graphed or self._eagerly

    compiled = False
    waiting = False

    @property
    def deterministic(self) -> bool:
        """See :class:`Engine`."""
        return self._hardware.deterministic

    def close(self) -> None:
        """See :class:`Engine`."""
        if self._graphed is not None:
            self._graphed.close()

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Engine`."""
        if isinstance(self.optimizer, MuonAdamW):
            self.optimizer.set_step(step)
        else:
            self.optimizer.set_rate(learning_rate(self._config, step))
        self._step.fill_(step)  # where a recorded update can read it
        seed = stream_seed(self._config.seed, Stream.DROPOUT, step)
        if self._ranks.rank:
            seed = stream_seed(seed, Stream.DROPOUT, self._ranks.rank)
        self._hardware.seed_dropout(seed)
        return self._compute(*self._batches.train(step))

    def _eagerly(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights by the loss of inputs and targets (B, T); that loss and the gradient's norm."""
        parts = min(self._config.micro_batches, len(x))
        total = torch.zeros((), device=x.device)
        for part in range(parts):
            with self._hardware.autocast():
                loss = self._model(x[part::parts], y[part::parts])[1]
            loss = loss / parts if len(x) % parts == 0 else loss * (len(x[part::parts]) / len(x))
            loss.backward()
            total += loss.detach()
        total = self._over_ranks(total)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.grad_clip or math.inf)
        self._watch(total, norm)
        self.optimizer.step()
        return total, norm

    def _over_ranks(self, loss: Tensor) -> Tensor:
        """Average gradients and the loss over the ranks; their parts of the batch are of the same size."""
        if self._ranks.world == 1:
            return loss
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)]) / self._ranks.world
        self._ranks.sum_gradient(flat)
        place = 0
        for gradient in gradients:
            gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
            place += gradient.numel()
        return flat[place]

    def _watch(self, loss: Tensor, norm: Tensor) -> None:
        """Note this step as bad where a value is not finite; weights are not written yet."""
        bad = torch.where(loss.isfinite() & norm.isfinite(), NEVER, self._step)
        self.first_bad.copy_(torch.minimum(self.first_bad, bad))


class SwitchingEngine:
    """Uncompiled updates until a compiled step is there.

    With `compile: true` that is before the first update, so that every update of the run is made in the same
    way. With `compile: auto` it is compiled beside training, if the run is long enough, and taken from the
    node's cache if it is there; at which step the compiled one takes over depends on the clock. What another
    node has compiled comes first, where nodes share it. `say` is called with what people should know.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: LanguageModel,
        batches: Batches,
        hardware: Hardware,
        ranks: Ranks,
        vocab_size: int,
        say: Callable[[str], None],
    ) -> None:
        self._eager = EagerEngine(config, model, batches, hardware, ranks)
        self._fast: CompiledEngine | None = None
        self._config = config
        self._batches = batches
        self._hardware = hardware
        self._ranks = ranks
        self._say = say
        self._compiler: Compiler | None = None
        self._settled = False
        self._begun: tuple[float, int] | None = None
        self._polled = 0.0
        self.optimizer = self._eager.optimizer
        self.first_bad = self._eager.first_bad
        self._buffers = Buffers(model, self.optimizer)
        self._order = order_for(config, vocab_size, batches.tokens("train"), hardware, ranks)
        self._take_from_cache()
        self._request = Request(self._order.key)
        self._asking = ranks.world == 1 and self._fast is None and self._request.pending
        if self._fast is None and config.compile is True:
            self._compile_first()

    @property
    def compiled(self) -> bool:
        """See :class:`Engine`."""
        return self._fast is not None

    @property
    def waiting(self) -> bool:
        """See :class:`Engine`."""
        return self._fast is None and not self._settled

    @property
    def deterministic(self) -> bool:
        """See :class:`Engine`."""
        if self._fast is None:
            return self._eager.deterministic
        return self._config.compile is True and self._hardware.device.type == "cpu"

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Engine`."""
        if self._fast is None and not self._settled:
            self._look(step)
        return (self._fast or self._eager).update(step)

    def close(self) -> None:
        """See :class:`Engine`."""
        if self._compiler is not None:
            self._compiler.close()
        (self._fast or self._eager).close()

    def _look(self, step: int) -> None:
        """Begin to compile once it is known to be worth it, and take over what has been compiled."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, step)
        if self._compiler is None and not self._asking:
            elapsed, steps = now - self._begun[0], step - self._begun[1]
            if steps < _ESTIMATE_STEPS or elapsed < _ESTIMATE_S:
                return
            remaining = elapsed / steps * (self._config.max_steps - step)
            if remaining < _WORTHWHILE_S or self._ranks.world > 1:
                self._settled = True
                return
            self._attempt(self._begin_to_compile)
        elif now - self._polled >= _POLL_S:
            self._polled = now
            if self._asking:
                self._take_answer(step)
            else:
                self._attempt(lambda: self._take_over(step))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except LibraryError as e:
            self._settled = True
            self._say(f"training goes on uncompiled: {e}")

    def _begin_to_compile(self) -> None:
        self._compiler = Compiler(self._order)
        self._say("compiling the step meanwhile, for this run and later ones on this machine")

    def _take_over(self, step: int) -> None:
        assert self._compiler is not None
        if self._compiler.done():
            self._take_from_cache()
            if self._fast is None:
                raise LibraryError("the compiled step cannot be used")
            self._say(f"step {step}: the compiled step takes over")

    def _take_answer(self, step: int) -> None:
        """Take over what another node has compiled; where that did not come, it is compiled here."""
        if self._request.pending:
            return
        self._asking = False
        self._take_from_cache()
        if self._fast is not None:
            self._say(f"step {step}: the compiled step takes over; another machine has compiled it")

    def _take_from_cache(self) -> None:
        """Use the node's compiled step, if all ranks have it."""
        programs = self._loaded()
        if programs is not None:
            self._eager.close()
            self._fast = CompiledEngine(
                self._config,
                self._order,
                programs,
                self._buffers,
                self.optimizer,
                self._batches,
                self._hardware,
                self._ranks,
                self.first_bad,
            )

    def _loaded(self) -> Programs | None:
        on_gpu = self._hardware.device.type == "cuda"
        strict = torch.get_deterministic_debug_mode()
        if on_gpu:  # uncompiled kernels that can be repeated bit by bit are chosen at a price
            torch.set_deterministic_debug_mode("default")
        try:
            programs = load(self._order, workers(self._config, self._hardware, self._ranks.world))
        except LibraryError as e:
            self._say(str(e))
            programs = None
        if not self._ranks.same(float(programs is not None)):
            programs = None
        if on_gpu and programs is None:
            torch.set_deterministic_debug_mode(strict)
        return programs

    def _compile_first(self) -> None:
        self._request.wait()
        self._take_from_cache()  # on all ranks, whether or not they could ask
        if self._fast is not None:
            return
        self._say("compiling the step; it takes about a minute, and later runs on this machine start at once")
        try:
            self._compiler = Compiler(self._order)
            self._compiler.wait()
            self._take_from_cache()
            if self._fast is None:
                raise LibraryError("the compiled step cannot be used")
        except LibraryError as e:
            raise TrainerError(f"cannot compile the step: {e}; it works without: compile: auto") from e


def build_engine(
    config: TrainerConfig,
    model: LanguageModel,
    batches: Batches,
    hardware: Hardware,
    ranks: Ranks,
    vocab_size: int,
    say: Callable[[str], None],
) -> Engine:
    """The engine that the configuration asks for."""
    if config.compile is False:
        return EagerEngine(config, model, batches, hardware, ranks)
    return SwitchingEngine(config, model, batches, hardware, ranks, vocab_size, say)
