"""Loggers: where the numbers and texts of a run go besides the console and ``metrics.jsonl``."""

from bnb_ds.loggers.logger import Logger, Outcome, RunInfo

__all__ = ["Logger", "Outcome", "RunInfo"]
