"""Fine-tune BnB, or a model it is compared with, on a downstream task.

deepspeed --num_gpus 8 runs/finetune.py RECIPE --deepspeed-config JSON [key.path=value ...]
"""

from __future__ import annotations

import sys

from bnb_ds.finetune.main import main

if __name__ == "__main__":
    sys.exit(main())
