"""``python -m bnb_ds.pretrain``, and ``deepspeed --module bnb_ds.pretrain``: the program ``runs/pretrain.py``."""

from __future__ import annotations

import sys

from bnb_ds.pretrain.main import main

if __name__ == "__main__":
    sys.exit(main())
