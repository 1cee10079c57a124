"""In the place of a training program: it reads its settings, and writes evaluations into ``metrics.jsonl`` at once.

The loss falls with the step, and is least for a learning rate of 1e-3. A rate above 1 fails. After its evaluations the
program runs as long as there is a file ``hold`` beside ``output_dir``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import yaml


def main() -> None:
    recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
    rate = json.loads(Path(sys.argv[sys.argv.index("--deepspeed-config") + 1]).read_text())["optimizer"]["params"]["lr"]
    run = Path(recipe["output_dir"])
    for name in ("checkpoints", "best"):
        (run / name).mkdir(parents=True, exist_ok=True)
    with open(run / "starts", "a") as file:
        file.write("started\n")
    if rate > 1:
        print("stand-in: error: the loss is nan")
        sys.exit(2)
    done = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0
    for step in range(done + 1, recipe["steps"] + 1):
        loss = abs(math.log10(rate) + 3) + 1 / step + recipe["schedule"]["warmup_ratio"]
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "eval/loss": loss}) + "\n")
    while (run.parent.parent / "hold").exists():
        time.sleep(0.01)


if __name__ == "__main__":
    main()
