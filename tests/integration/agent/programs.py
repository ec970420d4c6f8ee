"""Small programs that behave as training programs do."""

from pathlib import Path

TRAIN = """
import json, os, sys, time
from orchestrator.contract import EXIT_SAVED, MARK_FILE, run_context

context = run_context()
STEPS, EVERY, PAUSE, GATE = {steps}, {every}, {pause}, {gate!r}
step = 0
if context.restore_dir:
    step = json.loads((context.restore_dir / MARK_FILE).read_text())["step"]
    print("resumed at", step)

def save(step):
    folder = context.checkpoint_dir / "writing"
    folder.mkdir()
    (folder / "state.bin").write_bytes(bytes(str(step), "ascii") * {size})
    mark = {{"step": step, "metrics": {{"val/loss": 10.0 / (step + 1)}}}}
    (folder / MARK_FILE).write_text(json.dumps(mark))
    context.publish(folder, step)

saved = step
while step < STEPS:
    context.log(step, {{"train/loss": 1.0 / (step + 1), "when": time.monotonic()}})
    print("step", step, flush=True)
    time.sleep(PAUSE)
    while GATE and step == STEPS - 1 and not os.path.exists(GATE):
        time.sleep(PAUSE)
    step += 1
    if step % EVERY == 0:
        save(step); saved = step
    if context.stop_requested():
        if saved != step:
            save(step)
        sys.exit(EXIT_SAVED)
if saved != step:
    save(step)
print("done")
"""


def train(
    steps: int = 10, every: int = 5, pause: float = 0.01, size: int = 100, gate: Path | None = None
) -> str:
    """Counts steps, logs one loss for each, saves every so many, and saves and ends when asked to.

    Does not make the last step before the file `gate` is there.
    """
    return TRAIN.format(steps=steps, every=every, pause=pause, size=size, gate=str(gate or ""))
