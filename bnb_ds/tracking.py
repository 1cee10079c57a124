"""Where numbers go: TensorBoard, a progress bar on a terminal, plain lines off it. Rank 0 only; silent elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bnb_ds import distributed
from bnb_ds.errors import DataError


class Tracker:
    """Writes scalars of one run.

    Args:
        log_dir: TensorBoard directory (``output_dir/runs``).
        start_step: steps already done; what an interrupted run logged beyond it is superseded.
        total_steps: length of the progress bar.
    """

    def __init__(self, log_dir: Path, *, start_step: int, total_steps: int) -> None:
        self._writer = self._bar = None
        if not distributed.is_main():
            return
        self._writer = SummaryWriter(str(log_dir), purge_step=start_step + 1)
        # disable=None: no bar where stderr is not a terminal; log lines say the same there.
        self._bar = tqdm(total=total_steps, initial=start_step, disable=None, unit="step", dynamic_ncols=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log one value for each tag, and show them in one line."""
        if self._writer is None:
            return
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()
        line = "  ".join(f"{tag.partition('/')[2]} {value:.4g}" for tag, value in values.items())
        self.say(f"step {step}  {line}")

    def advance(self) -> None:
        """One more step done."""
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar, or plainly where there is none."""
        if self._bar is None:
            return
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._writer is not None:
            self._bar.close()
            self._writer.close()


def read_scalars(log_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a run, tag -> (step, value) in order, through TensorBoard's own reader.

    Raises:
        DataError: nothing was logged there.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(log_dir.glob("events.out.tfevents.*")):
        raise DataError(f"{log_dir}: nothing was logged here; give the output_dir of a run")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
