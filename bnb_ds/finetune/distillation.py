"""``bnb-ds distill``: sequence-level knowledge distillation (Kim and Rush, EMNLP 2016).

An autoregressive teacher rewrites the targets of a training set with beam search. The result is a JSON-lines file with
the columns of the task; a recipe names it as ``data.train``. Several tasks write one file each. Joined with ``cat``,
these files equal the file of a single task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from bnb_ds.common.files import is_stream, sha256_file
from bnb_ds.common.line_files import refuse_no_such_share, share_path
from bnb_ds.common.line_outputs import (
    ResumableOutput,
    StreamOutput,
    open_output,
    refuse_finished_output,
    refuse_line_output,
)
from bnb_ds.errors import ConfigError
from bnb_ds.systems.baselines import AutoregressiveSystem
from bnb_ds.systems.model_dir import best_model, system_and_data
from bnb_ds.tasks.data_section import TaskDataSection
from bnb_ds.tasks.examples import ReadingCounts, files_of, read_examples
from bnb_ds.tasks.row_reader import Example
from bnb_ds.tasks.tokenised import cached_directory

_SPLIT = "train"


@dataclass(frozen=True)
class DistillJob:
    """The settings of a distillation.

    Attributes:
        teacher: directory of a run of ``runs/finetune.py``, of its best model, or of an export.
        output: JSON-lines file. With several tasks, each adds its share: ``OUTPUT.00000-of-00004`` and so on.
        task_name: default: the task that the teacher was fine-tuned for.
        overrides: ``data.KEY=VALUE``, replaces settings of the data that the teacher was fine-tuned on.
        num_beams: default: the number of beams in the teacher's configuration.
        batch_tokens: most source tokens in a batch, counted with padding and once for each beam.
        task_index: this task's share of the examples, from 0.
        num_tasks: number of shares.
        window: number of examples that are sorted by length together and written at once.
        resume: continue an unfinished output.
        overwrite: replace an output that exists.
    """

    teacher: Path
    output: Path
    task_name: str | None = None
    overrides: Sequence[str] = ()
    num_beams: int | None = None
    batch_tokens: int = 8192
    task_index: int = 0
    num_tasks: int = 1
    window: int = 2048
    resume: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Check the share and the output.

        Raises:
            ConfigError: there is no such share, or the output cannot be written.
        """
        refuse_no_such_share(self.task_index, self.num_tasks)
        if is_stream(self.output) and (self.resume or self.num_tasks > 1):
            flag = "--resume" if self.resume else "--num-tasks above 1"
            raise ConfigError(f"{flag} needs an output that is a file: --output {self.output} is a device or a pipe")
        self.refuse_output(())

    def refuse_output(self, inputs: Sequence[Path]) -> None:
        """Raise ConfigError if the output is one of the inputs, or cannot be written."""
        for path in {self.output, self.output_path}:
            refuse_line_output(path, inputs)

    @property
    def output_path(self) -> Path:
        """The output file of this task."""
        return share_path(self.output, self.task_index, self.num_tasks)


def distill(job: DistillJob) -> str:
    """Write this task's share of the distilled training set; returns one line for the user.

    Raises:
        ConfigError, DataError, CheckpointError: a setting is wrong, or data or teacher cannot be used. The message
            names flag, file or field.
    """
    job.check()
    teacher = best_model(job.teacher)
    system, data = system_and_data(teacher, job.task_name, job.overrides)
    if not isinstance(system, AutoregressiveSystem):
        raise ConfigError(
            f"{job.teacher}: a model of kind {system.kind} cannot be the teacher; give an autoregressive one"
            " (bert2bert, transformer, seq2seq)"
        )
    job.refuse_output([*files_of(data, _SPLIT), *teacher.rglob("*")])
    refuse_finished_output(job.output_path, resume=job.resume, overwrite=job.overwrite)
    settings = _settings(job, teacher, system, data)
    counts = ReadingCounts()
    total = sum(1 for _ in read_examples(system.task, data, _SPLIT, counts))
    begin, end = (total * number // job.num_tasks for number in (job.task_index, job.task_index + 1))
    output = open_output(job.output_path, settings, resume=job.resume, overwrite=job.overwrite)
    try:
        if not output.is_complete:
            # Here the progress counts examples, not bytes of an input file.
            first = max(begin, output.progress.input_offset)
            if first < end:
                _write(job, teacher, system, data, output, first, end)
            output.finish()
    finally:
        output.abandon()
    left_out = "".join(f"; {number:,} rows left out: {reason}" for reason, number in sorted(counts.left_out.items()))
    return "".join([_summary(job, output), left_out, *(f"; {note}" for note in counts.notes.lines())])


def _settings(job: DistillJob, teacher: Path, system: AutoregressiveSystem, data: TaskDataSection) -> dict[str, object]:
    """All settings that determine the output."""
    files = sorted(path for path in teacher.iterdir() if path.suffix in (".json", ".safetensors"))
    return {
        "teacher": {path.name: sha256_file(path) for path in files},
        "examples": cached_directory(system.task, data, _SPLIT, system.codec).name,
        "share": f"{job.task_index} of {job.num_tasks}",
        "num_beams": job.num_beams,
        "batch_tokens": job.batch_tokens,
        "window": job.window,
    }


def _write(
    job: DistillJob,
    teacher: Path,
    system: AutoregressiveSystem,
    data: TaskDataSection,
    output: ResumableOutput | StreamOutput,
    first: int,
    end: int,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = system.load(teacher).to(device)
    own_beams = job.num_beams or model.model.generation_config.num_beams or 1
    examples = islice(read_examples(system.task, data, _SPLIT), first, end)
    while window := list(islice(examples, job.window)):
        start = time.monotonic()
        encoded = system.codec.encode_sources(
            [example.sources for example in window], system.lengths.source, cut=system.lengths.cut
        )
        rows = [tokens.tolist() for tokens in encoded.tokens]
        texts = [""] * len(rows)
        for places in _batches([len(row) for row in rows], max(job.batch_tokens // own_beams, 1)):
            outputs = system.write(model, [rows[place] for place in places], own_beams)
            for place, text in zip(places, system.codec.decode(outputs), strict=True):
                texts[place] = text
        first += len(window)
        lines = [_line(system, example, text) for example, text in zip(window, texts, strict=True)]
        counts = {"lines": len(window), "empty": sum(not text for text in texts), "truncated": encoded.num_cut}
        output.write(lines, first, counts, time.monotonic() - start)


def _batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Batches of row numbers, sorted by length. A batch has at most ``max_tokens`` with padding, or is one row."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and lengths[place] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _line(system: AutoregressiveSystem, example: Example, text: str) -> str:
    """The JSON of one row of the task. If the teacher wrote nothing, the row keeps its original target."""
    task = system.task
    row = dict(zip(task.sources, example.sources, strict=True))
    # If the task has a column of ids, the id keeps its name. A reader looks for a column of this exact name first.
    return json.dumps({task.id_column or "id": example.id, **row, task.target: text or example.target})


def _summary(job: DistillJob, output: ResumableOutput | StreamOutput) -> str:
    counts, seconds = output.progress.counts, output.progress.seconds
    notes = {
        "empty": "targets unchanged because the teacher wrote nothing",
        "truncated": "sources cut to the teacher's longest length",
    }
    said = "".join(f"; {counts[name]:,} {note}" for name, note in notes.items() if counts[name])
    rate = f", {counts['lines'] / seconds:.1f} sentences/s" if seconds > 0 else ""
    return f"distill: {counts['lines']:,} examples to {job.output_path}{rate}{said}"
