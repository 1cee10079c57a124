"""One rank of `test_long_work`: rank 0 is at work for three times as long as a hang may take, and rank 1 waits.

Argument: a directory, into which rank 0 writes as a download does, before it ticks as tokenising does; or nothing: it
only sleeps.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bnb_ds.distributed import ranks
from bnb_ds.distributed.watchdog import Watchdog

HANG_SECONDS = 6.0


def work(path: Path, watchdog: Watchdog) -> None:
    """Write for a while, then tick for as long."""
    begin = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        while time.monotonic() < begin + 1.5 * HANG_SECONDS:
            time.sleep(0.2)
            file.write(bytes(40_000))
    while time.monotonic() < begin + 3 * HANG_SECONDS:
        time.sleep(0.2)
        watchdog.tick()


def main() -> None:
    """Join the others, work or wait, and leave."""
    ranks.init()
    with Watchdog(60.0, HANG_SECONDS) as watchdog:
        watchdog.mark("download")
        if ranks.is_main():
            work(Path(sys.argv[1]) / "file", watchdog) if sys.argv[1:] else time.sleep(1000)
        ranks.barrier()
    ranks.shutdown()


if __name__ == "__main__":
    main()
