"""``python -m bnb_ds.finetune``, and ``deepspeed --module bnb_ds.finetune``: the program ``runs/finetune.py``."""

from __future__ import annotations

import sys

from bnb_ds.finetune.main import main

if __name__ == "__main__":
    sys.exit(main())
