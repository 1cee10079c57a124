"""The work on one part: indexing it, building its shards, checking its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from bnb_ds.common.files import disk_errors
from bnb_ds.errors import DataError
from bnb_ds.shards.manifest import SPLITS
from bnb_ds.shards.npy_files import ShardFiles
from data_prep.jobs.index import DROP_REASONS, IndexBuilder
from data_prep.jobs.job import Job
from data_prep.jobs.near import Signatures
from data_prep.sources.documents import BadRecord, Document, Omitted, Record, batched, is_held_out
from data_prep.sources.units import Source, Unit
from data_prep.tokenise.engines import PROOF_CHARACTERS, EngineFault

# What an engine encodes at once, with up to a hundred bytes of memory for each. With twice as many one process is 3%
# faster, and two are slower: each touches more memory for the first time.
_BATCH_CHARACTERS = 1 << 21


def index_part(job: Job, number: int) -> None:
    """Note the ids, versions and content hashes of a part's records.

    Raises:
        DataError: reading or writing fails, or an input changed meanwhile.
    """
    builder, digests = IndexBuilder(Signatures() if job.options.drop_near_duplicates else None), []
    for unit in job.parts[number]:
        for record in _read(job, unit, digests):
            _refuse_bad(record, job)
            builder.add(record)
            job.counters.add(documents=1)
        job.counters.add(num_bytes=unit.num_bytes)
    with disk_errors(job.workspace.directory):
        job.workspace.write(_inputs_of_index(number), {"units": digests})
        if job.options.drop_near_duplicates:
            job.workspace.write_bytes(job.near_path(number).name, builder.bands_to_bytes())
        job.workspace.write_bytes(job.index_path(number).name, builder.to_bytes())


def check_part(job: Job, number: int) -> None:
    """Compare the inputs of a finished part with what it was made of.

    Raises:
        DataError: they changed, or cannot be read.
    """
    for unit, digest in zip(job.parts[number], job.workspace.marker(number)["units"], strict=True):
        file = job.source.files[unit.file]
        if file.stamp() is not None and file.digest(unit) != digest:
            raise _changed(job, file, f"part {number} was made of it")
        job.counters.add(num_bytes=unit.num_bytes)


def build_part(job: Job, number: int) -> None:
    """Write the shards of a part, and its marker when they are whole.

    Raises:
        EngineFault: the engine does not prove itself on the beginning of the part, or was wrong on another part.
        DataError: reading or writing fails, or an input changed meanwhile or since it was indexed.
    """
    if job.workspace.is_refused(job.engine.name):
        raise EngineFault("was wrong on another part of this corpus")
    with disk_errors(job.workspace.directory):
        files = ShardFiles(
            job.workspace.new_part(number),
            vocab_size=job.tokenizer.vocab_size,
            special_ids=job.tokenizer.special_ids,
            max_tokens=job.options.tokens_per_shard,
            name=partial(_shard_name, number),
        )
    skipped: Counter[str] = Counter()
    bad: list[BadRecord] = []
    digests: list[str] = []
    for ordinal, batch in enumerate(batched(_documents(job, number, skipped, bad, digests), _BATCH_CHARACTERS)):
        if ordinal == 0:
            job.engine.prove(_beginning(batch), f"part {number}")
        encoded = job.engine([document.text for document in batch])
        with disk_errors(job.workspace.directory):
            for index, document in enumerate(batch):
                token_ids = encoded[index]
                if token_ids.size == 0:
                    skipped["empty"] += 1
                else:
                    files.add(token_ids, "heldout" if is_held_out(document.id, job.options.holdout) else "train")
        job.counters.add(documents=len(batch), tokens=len(encoded.ids), skipped=sum(skipped.values()) - job.counted)
        job.counted = sum(skipped.values())
    if job.needs_index:
        _refuse_other_than_indexed(job, number, digests)
    with disk_errors(job.workspace.directory):
        marker = {
            "shards": [shard.model_dump() for shard in files.finish()],
            "documents": {split: files.num_documents[split] for split in SPLITS},
            "tokens": {split: files.num_tokens[split] for split in SPLITS},
            "skipped": dict(sorted(skipped.items())),
            "bad": [str(record) for record in bad],
            "units": digests,
            "sources": _source_entries(job, number, digests),
            "engine": {"name": job.engine.name, "packages": job.engine.packages},
        }
        job.workspace.finish_part(number, marker)


def records(source: Source, unit: Unit, skip_bad: bool) -> Iterator[Record]:
    """The records of a unit. With ``skip_bad``, a failure in the middle becomes the last record."""
    try:
        yield from source.read(unit)
    except DataError as error:
        if not skip_bad:
            raise
        place, _, reason = str(error).partition(": ")
        yield BadRecord(place, f"{reason} (the rest of the file is skipped)")


def _read(job: Job, unit: Unit, digests: list[str]) -> Iterator[Record]:
    """The records of a unit; then the SHA-256 of what they were read from is appended.

    Raises:
        DataError: reading fails, or the file changed meanwhile.
    """
    file = job.source.files[unit.file]
    stamp = file.stamp()
    yield from records(job.source, unit, job.options.skip_bad)
    digests.append(file.digest(unit))
    if file.stamp() != stamp:
        raise DataError(f"{file.path}: changed while it was read; run the same command again when it is complete")


def _documents(
    job: Job, number: int, skipped: Counter[str], bad: list[BadRecord], digests: list[str]
) -> Iterator[Document]:
    """The documents of a part that become shards. All other records are counted."""
    job.counted = 0
    drops = np.load(job.drops_path(number)) if job.needs_index else None
    ordinal = -1
    for unit in job.parts[number]:
        for record in _read(job, unit, digests):
            ordinal += 1
            _refuse_bad(record, job)
            if isinstance(record, BadRecord):
                bad.append(record)
                skipped["bad"] += 1
            elif isinstance(record, Omitted):
                skipped[record.reason] += 1
            elif isinstance(record, Document):
                if drops is not None and drops[ordinal]:
                    skipped[DROP_REASONS[drops[ordinal]]] += 1
                else:
                    yield record
        job.counters.add(num_bytes=unit.num_bytes)


def _beginning(batch: list[Document]) -> list[str]:
    """The first texts of a part."""
    texts: list[str] = []
    left = PROOF_CHARACTERS
    for document in batch:
        texts.append(document.text[:left])
        left -= len(texts[-1])
        if not left:
            break
    return texts


def _refuse_bad(record: Record, job: Job) -> None:
    if isinstance(record, BadRecord) and not job.options.skip_bad:
        raise DataError(f"{record} (or leave such records out with --skip-bad)")


def _source_entries(job: Job, number: int, digests: list[str]) -> dict[str, Any]:
    """The manifest entry of every file that begins in this part, with the SHA-256 of each of its units."""
    own = dict(zip(job.parts[number], digests, strict=True))
    files = {unit.file for unit in own}
    if number:
        files.discard(job.parts[number - 1][-1].file)
    entries = {}
    for index in sorted(files):
        file = job.source.files[index]
        units = [unit for part in job.parts[number:] for unit in part if unit.file == index]
        # All units are hashed here, whoever reads them: `merge` compares, so that they are of one file.
        hashes = [file.digest(unit) for unit in units] if len(units) > 1 else [own[units[0]]]
        entry = file.manifest_entry(hashes[0] if len(units) == 1 else None)
        entries[str(index)] = {"entry": entry, "units": hashes}
    return entries


def _refuse_other_than_indexed(job: Job, number: int, digests: list[str]) -> None:
    indexed = job.workspace.read(_inputs_of_index(number))["units"]
    for unit, digest, before in zip(job.parts[number], digests, indexed, strict=True):
        if digest != before:
            raise _changed(job, job.source.files[unit.file], "it was indexed")


def _changed(job: Job, file: Any, since: str) -> DataError:
    return DataError(
        f"{file.name}: changed since {since}; restore it, or remove {job.workspace.partial} and run the command again"
    )


def _inputs_of_index(number: int) -> str:
    return f"index-{number:05d}.json"


def _shard_name(part: int, split: str, index: int) -> str:
    """``train-00012`` for the first shard of part 12, ``train-00012-001`` for its second."""
    return f"{split}-{part:05d}" + (f"-{index:03d}" if index else "")
