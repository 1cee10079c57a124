"""Runs many processes as one job: ranks and sums, requests to stop, detection of ranks that die or hang.

Face: `barrier`, `init`, `is_main`, `local_rank`, `rank`, `world_size`.
"""

from bnb_ds.distributed.ranks import barrier, init, is_main, local_rank, rank, world_size

__all__ = ["barrier", "init", "is_main", "local_rank", "rank", "world_size"]
