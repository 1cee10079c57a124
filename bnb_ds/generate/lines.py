"""``bnb-ds generate``: run an exported model on the lines of a file of any size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from bnb_ds.common.empty_outputs import count_empty, empty_warning
from bnb_ds.common.files import is_stream, sha256_file
from bnb_ds.common.line_files import (
    STANDARD,
    Line,
    LineReader,
    input_identity,
    is_read_once,
    open_input,
    read_lines,
    refuse_no_such_share,
    share_of_file,
    share_path,
)
from bnb_ds.common.line_outputs import (
    ResumableOutput,
    StreamOutput,
    open_output,
    refuse_finished_output,
    refuse_line_output,
)
from bnb_ds.common.memory import return_freed_memory
from bnb_ds.errors import ConfigError, DataError
from bnb_ds.generate.open_model import fingerprint, model_files
from bnb_ds.generate.pipeline import WINDOW_TEXTS, BnbPipeline, windows


@dataclass(frozen=True)
class LineJob:
    """The settings of one ``bnb-ds generate``.

    Attributes:
        model_dir: directory of an exported model.
        input_name: text file, a pipe, or ``-`` for standard input.
        output_name: text file, a pipe or device, or ``-`` for standard output.
        settings: keyword arguments of `BnbPipeline.from_pretrained`.
        resume: continue an unfinished output.
        overwrite: replace an output that exists.
        task_index: number of this task's share of the input, from 0; its output is ``OUTPUT.00000-of-00004``.
        num_tasks: number of shares; with 1 the output has the given name.
        window: lines that are sorted by length together and written at once.
        progress: show a progress bar on standard error.
    """

    model_dir: Path
    input_name: str
    output_name: str
    settings: dict[str, Any]
    resume: bool = False
    overwrite: bool = False
    task_index: int = 0
    num_tasks: int = 1
    window: int = WINDOW_TEXTS
    progress: bool = False

    def check(self, sharing_flag: str = "--num-tasks") -> None:
        """Check all that can be checked before the model is loaded.

        Args:
            sharing_flag: the flag that gave ``num_tasks``, for messages.

        Raises:
            ConfigError, DataError: settings do not go together, or the output cannot be written or is an input.
        """
        refuse_no_such_share(self.task_index, self.num_tasks)
        streams = [self.input_name] if is_read_once(self.input_name) else []
        if self.output_name == STANDARD or is_stream(self.output_name):
            streams.append(self.output_name)
        way_out = f"give file names for --input and --output, not {' and '.join(streams)}"
        if streams and self.num_tasks > 1:
            raise ConfigError(f"{sharing_flag} above 1 divides a file: {way_out}")
        if streams and self.resume:
            raise ConfigError(f"--resume needs seekable files: {way_out}")
        model = self.model_dir.iterdir() if self.model_dir.is_dir() else ()
        inputs = [0 if self.input_name == STANDARD else self.input_name, *model, *self.content_files()]
        refuse_line_output(self.output_name, inputs)
        if self.num_tasks > 1:
            refuse_line_output(self.output_path, inputs)
        refuse_finished_output(self.written, resume=self.resume, overwrite=self.overwrite)

    def content_files(self) -> list[Path]:
        """The files of the model and the language model that decide the output."""
        lm = self.settings.get("lm_path")
        return [*model_files(self.model_dir), *([] if lm is None else [Path(lm)])]

    @property
    def output_path(self) -> Path:
        """The output file of this task; meaningless for standard output."""
        return share_path(Path(self.output_name), self.task_index, self.num_tasks)

    @property
    def written(self) -> str | Path:
        """What this task writes: a file, a stream, or ``-``."""
        return STANDARD if self.output_name == STANDARD else self.output_path


def generate_lines(job: LineJob) -> str:
    """Write one generated line for each input line, in order. An empty line stays empty.

    Bad input does not stop the job: long lines are cut, invalid UTF-8 becomes U+FFFD, and both are counted.

    Returns:
        One line for the user, with the counts of lines and the lines per second; a second one warns of empty outputs.

    Raises:
        CheckpointError, ConfigError, DataError: the model, a setting or a file is wrong; the message names it.
    """
    job.check()
    with open_input(job.input_name) as file:
        pipeline = BnbPipeline.from_pretrained(job.model_dir, **job.settings)
        counts, seconds = _write(job, pipeline, file)
    return _summary(job, pipeline, counts, seconds)


def _write(job: LineJob, pipeline: BnbPipeline, file: BinaryIO) -> tuple[dict[str, int], float]:
    begin, end, identity = 0, None, {}
    if not is_read_once(job.input_name):
        identity = input_identity(job.input_name, file)
        begin, end = share_of_file(file, job.task_index, job.num_tasks)
    settings = {
        "input": identity,
        "share": f"{job.task_index} of {job.num_tasks}",
        "model": fingerprint(job.model_dir),
        "options": {name: _plain(value) for name, value in job.settings.items() if name != "device"},
        "window": job.window,
    }
    name = job.written
    if not (name == STANDARD or is_stream(name)):
        settings["content"] = {os.path.relpath(path, job.model_dir): sha256_file(path) for path in job.content_files()}
    output = open_output(name, settings, resume=job.resume, overwrite=job.overwrite)
    reader = read_lines(file, begin, end, name=job.input_name)
    try:
        if isinstance(output, ResumableOutput):
            output.refuse_other_input(reader.skip(max(output.progress.input_offset - begin, 0)))
        if not output.is_complete:
            _run(job, pipeline, output, reader)
            output.finish()
    finally:
        output.abandon()
    return output.progress.counts, output.progress.seconds


def _run(job: LineJob, pipeline: BnbPipeline, output: ResumableOutput | StreamOutput, reader: LineReader) -> None:
    start = time.monotonic()
    for texts, counts, offset in _generated(job, pipeline, _checked(job, pipeline, output, reader)):
        now = time.monotonic()
        # The reader stands at the end of this window: the next one is not read before this one is written.
        output.write(texts, offset, counts, now - start, reader.digest)
        start = now


def _checked(
    job: LineJob, pipeline: BnbPipeline, output: ResumableOutput | StreamOutput, reader: LineReader
) -> Iterator[Line]:
    """The lines; one that the model's task cannot read is named by its number."""
    share = f" of share {job.task_index} of {job.num_tasks}" if job.num_tasks > 1 else ""
    for number, line in enumerate(reader, output.progress.counts["lines"] + 1):
        try:
            pipeline.reader.check([line.text])
        except DataError as error:
            raise DataError(f"{job.input_name}: line {number}{share}: {error}") from None
        yield line


def _generated(
    job: LineJob, pipeline: BnbPipeline, lines: Iterator[Line]
) -> Iterator[tuple[list[str], dict[str, int], int]]:
    """Yield the outputs of each window, the counts of its lines, and its end in the input as a byte offset."""
    with tqdm(disable=not job.progress, unit=" lines") as bar:
        for part in windows(lines, job.window, lambda line: len(line.text)):
            outputs = pipeline.generate([line.text for line in part])
            counts = {
                "lines": len(part),
                "empty": sum(output.num_source_tokens == 0 for output in outputs),
                "truncated": sum(
                    output.is_truncated or line.is_cut for output, line in zip(outputs, part, strict=True)
                ),
                "damaged": sum(line.is_damaged for line in part),
                "unwritten": count_empty(output.text for output in outputs if output.num_source_tokens > 0),
            }
            yield [output.text for output in outputs], counts, part[-1].end
            return_freed_memory()
            bar.update(len(part))


def _summary(job: LineJob, pipeline: BnbPipeline, counts: dict[str, int], seconds: float) -> str:
    num_lines = counts.get("lines", 0)
    notes = {
        "empty": "empty",
        "truncated": f"cut to the model's {pipeline.reader.max_length} tokens",
        "damaged": "not valid UTF-8, read with replacement characters",
    }
    said = "".join(f"; {counts[name]} {note}" for name, note in notes.items() if counts.get(name))
    rate = f", {num_lines / seconds:.1f} sentences/s ({pipeline.engine.name})" if seconds > 0 else ""
    summary = f"generate: {num_lines} lines from {job.input_name} to {job.written}{rate}{said}"
    warning = empty_warning(counts.get("unwritten", 0), num_lines - counts.get("empty", 0))
    return summary if warning is None else f"{summary}\n{warning}"


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def for_task(job: LineJob, index: int, count: int) -> LineJob:
    """The share of a job that one of several tasks does."""
    return replace(job, task_index=index, num_tasks=count)
