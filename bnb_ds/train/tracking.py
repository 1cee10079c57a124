"""Log the numbers of a run to TensorBoard, ``metrics.jsonl`` and the console.

Only rank 0 logs. It shows a progress bar on a terminal, and plain lines elsewhere.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bnb_ds.common.files import write_atomic
from bnb_ds.distributed import ranks
from bnb_ds.errors import DataError

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Logs one run.

    Args:
        log_dir: TensorBoard directory (``output_dir/runs``); ``metrics.jsonl`` is in its parent directory.
        start_step: number of steps already done. Later entries of an interrupted run are removed.
        total_steps: length of the progress bar.
        evaluation_due: the evaluation of ``start_step`` will be made again, so what was logged of it is removed too.
    """

    def __init__(self, log_dir: Path, *, start_step: int, total_steps: int, evaluation_due: bool = False) -> None:
        self._writer = self._bar = None
        if not ranks.is_main():
            return
        self._log_dir = log_dir
        self._open(start_step, evaluation_due)
        # With disable=None there is no bar if stderr is not a terminal. The log lines show the progress there.
        self._bar = tqdm(total=total_steps, initial=start_step, disable=None, unit="step", dynamic_ncols=True)

    def _open(self, start_step: int, evaluation_due: bool = False) -> None:
        self._writer = SummaryWriter(str(self._log_dir), purge_step=start_step + 1)
        metrics = self._log_dir.parent / METRICS_FILE
        _forget_beyond(metrics, start_step, evaluation_due)
        self._metrics = open(metrics, "a", encoding="utf-8")  # noqa: SIM115

    def scalars(
        self, step: int, values: dict[str, float], line: str | None = None, record: dict[str, Any] | None = None
    ) -> None:
        """Log one value for each tag, and print a line.

        Args:
            step: number of the step.
            values: tag -> value.
            line: the printed line, without the step; default: all values.
            record: further entries for ``metrics.jsonl`` only.
        """
        if self._writer is None:
            return
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()
        # JSON has no NaN. A gradient norm that was not computed becomes null.
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **finite, **(record or {})}) + "\n")
        self._metrics.flush()
        if line is None:
            line = "  ".join(f"{tag.partition('/')[2]} {_written(value)}" for tag, value in values.items())
        self.say(f"step {step}  {line}")

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Log a text to TensorBoard."""
        if self._writer is not None:
            self._writer.add_text(tag, markdown, step)

    def histogram(self, step: int, tag: str, values: torch.Tensor) -> None:
        """Log the distribution of a tensor's values to TensorBoard."""
        if self._writer is not None:
            self._writer.add_histogram(tag, values.float().cpu(), step)

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._bar is None:
            return
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def go_back(self, step: int) -> None:
        """Remove the entries after a step, because the run continues from there."""
        if self._writer is None:
            return
        self._writer.close()
        self._metrics.close()
        self._bar.update(step - self._bar.n)
        self._open(step)

    def close(self) -> None:
        if self._writer is not None:
            self._bar.close()
            self._writer.close()
            self._metrics.close()


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _forget_beyond(metrics: Path, step: int, evaluation_due: bool) -> None:
    """Remove the rows after the step that a run resumes from, and a last line that is incomplete after a kill."""
    if metrics.exists():
        rows = [row for row in read_metrics(metrics) if row["step"] <= step]
        if evaluation_due:
            rows = [row for row in rows if row["step"] < step or "train/loss" in row]
        kept = [json.dumps(row) for row in rows]
        write_atomic(metrics, "".join(f"{line}\n" for line in kept))


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without an incomplete last line."""
    rows = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_scalars(log_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run, read with TensorBoard: tag -> list of (step, value), ordered by step.

    Raises:
        DataError: the directory holds no logs.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(log_dir.glob("events.out.tfevents.*")):
        raise DataError(f"{log_dir}: nothing was logged here; give the output_dir of a run")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    # An evaluation that was made again after a kill is there twice; the last one counts.
    return {tag: list({event.step: event.value for event in events.Scalars(tag)}.items()) for tag in tags}


def log_histograms(engine: Any, tracker: Tracker, step: int) -> None:
    """Log a histogram of each parameter. Every rank must call this, because it gathers ZeRO's partitions."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        values = safe_get_full_fp32_param(parameter)
        tracker.histogram(step, f"weights/{name}", (parameter if values is None else values).detach())
