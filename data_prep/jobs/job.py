"""The options of a run of `bnb-ds prep`, and what its workers need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnb_ds.errors import ConfigError
from bnb_ds.shards.manifest import TokenizerInfo
from bnb_ds.shards.writer import DEFAULT_TOKENS_PER_SHARD
from data_prep.jobs.progress import Counters
from data_prep.jobs.workspace import Workspace
from data_prep.sources.documents import DEFAULT_HOLDOUT
from data_prep.sources.units import Source, Unit

if TYPE_CHECKING:  # `bnb-ds prep text --help` reads the options, and engines take a second to import
    from data_prep.tokenise.engines import Candidate

EXECUTORS = ("local", "dask")


@dataclass(frozen=True)
class Options:
    """The choices that every source has. The first group decides the output, the second does not."""

    holdout: float = DEFAULT_HOLDOUT
    tokens_per_shard: int = DEFAULT_TOKENS_PER_SHARD
    drop_duplicates: bool = False
    drop_near_duplicates: bool = False
    skip_bad: bool = False
    part_bytes: int | None = None  # input on disk per part; None follows from the corpus

    workers: int = 1
    task_index: int = 0
    num_tasks: int = 1
    engine: str = "auto"
    executor: str = "local"  # one of EXECUTORS
    scheduler: str | None = None  # address of the cluster's

    def check(self) -> None:
        """Raise ConfigError for the first value that is out of range."""
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--holdout must be at least 0 and below 1, got {self.holdout}")
        for flag, value in (
            ("--tokens-per-shard", self.tokens_per_shard),
            ("--workers", self.workers),
            ("--num-tasks", self.num_tasks),
            ("--part-bytes", 1 if self.part_bytes is None else self.part_bytes),
        ):
            if value < 1:
                raise ConfigError(f"{flag} must be at least 1, got {value}")
        if self.executor not in EXECUTORS:
            raise ConfigError(f"--executor must be one of {', '.join(EXECUTORS)}, got {self.executor!r}")
        if (self.executor == "dask") != (self.scheduler is not None):
            raise ConfigError("--executor dask and --scheduler ADDRESS need each other; give both or neither")
        if self.executor != "local" and (self.num_tasks > 1 or self.workers > 1):
            raise ConfigError(
                "--executor dask shares the work itself; leave out --workers, --task-index and --num-tasks"
            )
        if not 0 <= self.task_index < self.num_tasks:
            raise ConfigError(
                f"--task-index must be at least 0 and below --num-tasks {self.num_tasks}, got {self.task_index}"
            )


@dataclass
class Job:
    """Everything that a worker needs. Workers inherit it by fork."""

    source: Source
    parts: list[list[Unit]]
    workspace: Workspace
    tokenizer: TokenizerInfo
    options: Options
    counters: Counters
    engine: Candidate | None = None
    counted: int = 0  # skipped records of this part that the counters include already

    @property
    def needs_index(self) -> bool:
        """Whether a record's fate depends on other records."""
        return self.options.drop_duplicates or self.options.drop_near_duplicates or self.source.latest_wins

    def index_path(self, part: int) -> Path:
        """Where the index of a part's records lies."""
        return self.workspace.partial / f"index-{part:05d}.npy"

    def near_path(self, part: int) -> Path:
        """Where the bands of a part's documents lie, where near-duplicates are dropped."""
        return self.workspace.partial / f"near-{part:05d}.npy"

    def drops_path(self, part: int) -> Path:
        """Where the decisions about a part's records lie."""
        return self.workspace.partial / f"drop-{part:05d}.npy"
