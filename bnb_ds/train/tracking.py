"""Log the numbers of a run to ``metrics.jsonl``, to the console and to the loggers of the recipe.

Only rank 0 logs. It shows a progress bar on a terminal, and plain lines elsewhere.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bnb_ds.common.files import write_atomic
from bnb_ds.distributed import ranks
from bnb_ds.errors import BnbError, DataError
from bnb_ds.loggers.choice import start_failed
from bnb_ds.loggers.logger import Logger, Outcome, RunInfo
from bnb_ds.loggers.tensorboard import TensorBoardLogger

METRICS_FILE = "metrics.jsonl"
_ID_FILE = "run_id"
#: numbers that are always the same for a run; only ``metrics.jsonl`` holds them
_CONSTANT = ("loss_samples",)
#: numbers that say nothing as long as they are 0: loggers are told of them from the first other value on
_USUALLY_ZERO = ("ctc_infeasible_fraction", "mask_fraction", "skipped_overflows", "skipped_spikes", "spike_returns")


@contextmanager
def _starting(name: str) -> Iterator[None]:
    try:
        yield
    except BnbError:
        raise
    except Exception as error:  # code of others, which may fail in any way
        raise start_failed(name, error) from error


class Tracker:
    """Logs one run.

    Args:
        log_dir: TensorBoard directory (``output_dir/runs``); ``metrics.jsonl`` is in its parent directory.
        start_step: number of steps already done. Later entries of an interrupted run are removed.
        total_steps: length of the progress bar.
        evaluation_due: the evaluation of ``start_step`` will be made again, so what was logged of it is removed too.
        loggers: name -> what makes the logger, as `bnb_ds.loggers.choice.find_loggers` returns it.
        run: what loggers are told about the run; its directory is that of ``log_dir``, and it gets its id here.

    Raises:
        ConfigError: a logger cannot start.
    """

    def __init__(
        self,
        log_dir: Path,
        *,
        start_step: int,
        total_steps: int,
        evaluation_due: bool = False,
        loggers: Mapping[str, Callable[[], Logger]] | None = None,
        run: RunInfo | None = None,
    ) -> None:
        self._bar: tqdm | None = None
        self._loggers: dict[str, Logger] = {}
        #: when the last line was printed or the bar moved, by `time.monotonic`
        self.last_sign = time.monotonic()
        if not ranks.is_main():
            return
        directory = log_dir.parent
        directory.mkdir(parents=True, exist_ok=True)
        run = run or RunInfo(directory, directory.name)
        self._run = replace(run, directory=directory, id=_run_id(directory, is_new=start_step == 0))
        for name, make in (loggers or {"tensorboard": TensorBoardLogger}).items():
            with _starting(name):
                self._loggers[name] = make()
        self._open(start_step, evaluation_due)
        # With disable=None there is no bar if stderr is not a terminal. The log lines show the progress there.
        self._bar = tqdm(total=total_steps, initial=start_step, disable=None, unit="step", dynamic_ncols=True)

    def _open(self, start_step: int, evaluation_due: bool = False) -> None:
        for name, logger in self._loggers.items():
            with _starting(name):
                logger.start(self._run, start_step)
        metrics = self._run.directory / METRICS_FILE
        rows = _forget_beyond(metrics, start_step, evaluation_due)
        self._not_zero = {tag for row in rows for tag in row if _name(tag) in _USUALLY_ZERO and row[tag]}
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
        if self._bar is None:
            return
        # JSON has no NaN. A gradient norm that was not computed becomes null.
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **finite, **(record or {})}) + "\n")
        self._metrics.flush()
        self._not_zero |= {tag for tag, value in values.items() if value}
        told = {tag: value for tag, value in values.items() if self._says_something(tag)}
        self._tell(lambda logger: logger.scalars(step, told))
        if line is None:
            line = "  ".join(f"{_name(tag)} {_written(value)}" for tag, value in values.items())
        self.say(f"step {step}  {line}")

    def _says_something(self, tag: str) -> bool:
        name = _name(tag)
        return name not in _CONSTANT and (name not in _USUALLY_ZERO or tag in self._not_zero)

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # a run of days does not end because a tracker's server does
                del self._loggers[name]
                reason = " ".join(str(error).split()) or type(error).__name__
                self.say(f"note         logger {name} has failed and is left out until the next launch ({reason})")

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Log the scores of an evaluation, tag -> score, and print them in a line that says so."""
        parts, group = [], "eval"
        for tag, value in scores.items():
            if _name(tag) in _CONSTANT:
                continue
            before, group = group, tag.partition("/")[0]
            split = f"{group.removeprefix('eval_')}: " if group != before else ""
            parts.append(f"{split}{_name(tag)} {_written(value)}")
        self.scalars(step, scores, "evaluation  " + "  ".join(parts))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Log a text."""
        self._tell(lambda logger: logger.text(step, tag, markdown))

    def histogram(self, step: int, tag: str, values: torch.Tensor) -> None:
        """Log the distribution of a tensor's values."""
        self._tell(lambda logger: logger.histogram(step, tag, values.float().cpu().numpy()))

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        if self._bar is not None:
            self.last_sign = time.monotonic()
            self._bar.set_postfix_str("", refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._bar is None:
            return
        self.last_sign = time.monotonic()
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def show_progress(self, text: str) -> None:
        """Show how far a long step is: beside the bar, or in a line."""
        if self._bar is None or self._bar.disable:
            self.say(text)
        else:
            self._bar.set_postfix_str(text)

    def go_back(self, step: int) -> None:
        """Remove the entries after a step, because the run continues from there."""
        if self._bar is None:
            return
        self._metrics.close()
        self._bar.update(step - self._bar.n)
        self._open(step)

    def close(self, outcome: Outcome = "done") -> None:
        """End the logs of this launch."""
        if self._bar is None:
            return
        self._tell(lambda logger: logger.finish(outcome))
        self._bar.close()
        self._metrics.close()


def _run_id(directory: Path, *, is_new: bool) -> str:
    """The id of a run, kept in its directory. A launch from step 0 begins a new run."""
    path = directory / _ID_FILE
    if is_new or not path.exists():
        write_atomic(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _name(tag: str) -> str:
    """A tag without its group."""
    return tag.partition("/")[2]


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _forget_beyond(metrics: Path, step: int, evaluation_due: bool) -> list[dict[str, Any]]:
    """Remove the rows after the step that a run resumes from, and a last line that is incomplete after a kill.

    Returns:
        The rows that are left.
    """
    if not metrics.exists():
        return []
    rows = [row for row in read_metrics(metrics) if row["step"] <= step]
    if evaluation_due:
        rows = [row for row in rows if row["step"] < step or "train/loss" in row]
    kept = [json.dumps(row) for row in rows]
    write_atomic(metrics, "".join(f"{line}\n" for line in kept))
    return rows


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
        tracker.histogram(step, histogram_tag(name), (parameter if values is None else values).detach())


def histogram_tag(parameter: str) -> str:
    """The tag of a parameter's histogram. Its group, which TensorBoard shows together, is one layer.

    ``encoder.layer.3.output.dense.weight`` -> ``weights_encoder.layer.3/output.dense.weight``
    """
    parts = parameter.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    end = numbers[0] + 1 if numbers else max(len(parts) - 2, 1)
    if len(parts) == 1:
        return f"weights/{parameter}"
    return f"weights_{'.'.join(parts[:end])}/{'.'.join(parts[end:])}"
