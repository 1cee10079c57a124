"""Pre-train BnB.

deepspeed --num_gpus 8 runs/pretrain.py RECIPE --deepspeed-config JSON [key.path=value ...]
"""

from __future__ import annotations

import sys

from bnb_ds.pretrain.main import main

if __name__ == "__main__":
    sys.exit(main())
