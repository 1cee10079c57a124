"""Making a shard directory of a source, in parallel, over several runs or machines. The bytes are always the same.

The input is cut into parts (:mod:`data_prep.sources.units`). Each part becomes shards of its own, and is finished when
its marker is written (:mod:`data_prep.jobs.workspace`). If duplicates or old versions are dropped, no part is built
before all parts are indexed. :func:`merge` renames the shards and writes the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from bnb_ds.data.tokenization import describe_tokenizer
from bnb_ds.shards.manifest import FORMAT_VERSION, Manifest
from data_prep.jobs import near, worker
from data_prep.jobs.finished import finished, refuse_other_work
from data_prep.jobs.index import write_drops
from data_prep.jobs.job import Job, Options
from data_prep.jobs.merge import NoDocumentsError, merge
from data_prep.jobs.pool import run_parts
from data_prep.jobs.progress import Progress
from data_prep.jobs.workspace import Workspace
from data_prep.sources.documents import HOLDOUT_RULE
from data_prep.sources.units import Source, parts
from data_prep.tokenise.engines import EngineFault, WrongIds, candidates


def prepare(
    source: Source,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerFast,
    options: Options,
    progress: Progress | None = None,
) -> Manifest | str:
    """Make the shards of a source, or of one task's share of it; what an earlier run finished is kept.

    Args:
        source: the corpus.
        output: shard directory to make; new, empty, or left by an interrupted run of the same work.
        tokenizer: makes the ids; a copy goes with the shards.
        options: see there.
        progress: is told what happens; silent by default.

    Returns:
        The manifest when everything is finished, now or before; otherwise one line that says what remains for other
        tasks to do.

    Raises:
        ConfigError: an option is out of range.
        DataError: reading or writing fails, an input changed since a part was made of it, the output was made by
            other work, or nothing is left to train on. Parts that were finished are kept and a
            rerun continues; without any, nothing is left.
    """
    options.check()
    # Processes are the parallelism here: a tokenizer that takes every core would slow the others down.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    progress = progress or Progress(silent=True)
    units = source.units()
    cut = parts(units, options.part_bytes)
    mine = range(options.task_index, len(cut), options.num_tasks)
    task = f"{options.task_index}-of-{options.num_tasks}" if options.num_tasks > 1 else None
    info = describe_tokenizer(tokenizer)
    plan = _plan(source, options, info, cut)
    if (manifest := finished(output)) is not None:
        refuse_other_work(output, manifest, plan, source.files[options.task_index :: options.num_tasks])
        progress.say(f"{output}: already finished, nothing to do")
        return manifest
    with Workspace(output, task) as workspace:
        workspace.begin(plan, info)
        job = Job(source, cut, workspace, info, options, progress.counters)
        _check_inputs(job, mine, progress)
        try:
            if job.needs_index and (waiting := _index(job, mine, progress)):
                return waiting
            _build(job, mine, tokenizer, progress)
        except BaseException:
            if task is None and not workspace.has_progress():
                workspace.discard()
            raise
        missing = [number for number in range(len(cut)) if workspace.marker(number) is None]
        if missing:
            return f"{len(missing)} of {len(cut)} parts remain for other tasks; then run `bnb-ds prep merge {output}`"
        if task is not None:
            return f"all {len(cut)} parts are finished; run `bnb-ds prep merge {output}`"
        try:
            return merge(workspace)
        except NoDocumentsError:
            workspace.discard()
            raise


def _plan(source: Source, options: Options, info: Any, cut: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "inputs": [{"name": file.name, "bytes": file.num_bytes()} for file in source.files],
        "settings": {
            "tokens_per_shard": options.tokens_per_shard,
            **source.settings,
            "drop_duplicates": options.drop_duplicates,
            **({"drop_near_duplicates": near.settings()} if options.drop_near_duplicates else {}),
            "skip_bad": options.skip_bad,
            "part_bytes": options.part_bytes,
        },
        "parts": [[[unit.file, unit.begin, unit.end] for unit in part] for part in cut],
        "holdout": {"rule": HOLDOUT_RULE, "fraction": float(options.holdout)},
        "tokenizer": {"name": info.name, "hash": info.hash, "vocab_size": info.vocab_size},
        "special_ids": {name: int(index) for name, index in info.special_ids.items()},
    }


def _check_inputs(job: Job, mine: range, progress: Progress) -> None:
    """Raise DataError unless the inputs of the finished parts of this task are still what they were made of."""
    done = [number for number in mine if job.workspace.marker(number) is not None]
    if done:
        progress.say(f"{len(done)} of {len(mine)} parts are finished already")
        with progress.phase("check inputs", _bytes(job, done)):
            _run(worker.check_part, job, done, progress)


def _index(job: Job, mine: range, progress: Progress) -> str | None:
    """Index the parts of this task; returns a line about missing parts unless all are indexed by now."""
    workspace = job.workspace
    todo = [number for number in mine if not job.index_path(number).exists()]
    with progress.phase("index", _bytes(job, todo)):
        _run(worker.index_part, job, todo, progress)
    missing = [number for number in range(len(job.parts)) if not job.index_path(number).exists()]
    if missing:
        return f"{len(missing)} of {len(job.parts)} parts are not indexed yet; run every task again when all are"
    if not all(job.drops_path(number).exists() for number in range(len(job.parts))):
        write_drops(workspace, [job.index_path(number) for number in range(len(job.parts))], job)
    return None


def _build(job: Job, mine: range, tokenizer: PreTrainedTokenizerFast, progress: Progress) -> None:
    todo = [number for number in mine if job.workspace.marker(number) is None]
    if not todo:
        return
    # Parts from everywhere first: an engine that is wrong on this input should be found out early.
    order = list(dict.fromkeys((todo[0], todo[len(todo) // 2], todo[-1], *todo)))
    for engine in candidates(tokenizer, job.options.engine, progress.say):
        job.engine = engine
        try:
            with progress.phase(f"build ({engine.name})", _bytes(job, order)):
                _run(worker.build_part, job, order, progress)
        except EngineFault as fault:
            if isinstance(fault, WrongIds):
                job.workspace.refuse_engine(engine.name)
            progress.say(f"engine {engine.name}: {fault}; not used")
        order = [number for number in mine if job.workspace.marker(number) is None]
        if not order:
            return


def _run(function: Callable[[Job, int], None], job: Job, numbers: Sequence[int], progress: Progress) -> None:
    """Call a function for every part, on this machine or on a cluster."""
    if job.options.executor == "local":
        run_parts(function, job, numbers, progress)
    else:
        from data_prep.jobs.cluster import run_on_cluster

        run_on_cluster(function, job, numbers, progress)


def _bytes(job: Job, numbers: Sequence[int]) -> int:
    return sum(unit.num_bytes for number in numbers for unit in job.parts[number])
