"""`runs/pretrain.py` whose evaluations take long, and whose watchdog may be as impatient as no recipe allows.

Variables: SECONDS_PER_BATCH of an evaluation, and HANG_SECONDS.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from bnb_ds.distributed.watchdog import Watchdog
from bnb_ds.pretrain import main as program
from bnb_ds.pretrain import run
from bnb_ds.train import job

_evaluate = run.evaluate


def slowly(*arguments: Any, check_in: Callable[[], None], **options: Any) -> dict[str, float]:
    """Evaluate, with a pause before each batch."""

    def pause() -> None:
        time.sleep(float(os.environ["SECONDS_PER_BATCH"]))
        check_in()

    return _evaluate(*arguments, check_in=pause, **options)


if __name__ == "__main__":
    run.evaluate = slowly
    job.Watchdog = lambda silence_seconds, hang_seconds: Watchdog(silence_seconds, float(os.environ["HANG_SECONDS"]))
    sys.exit(program.main())
