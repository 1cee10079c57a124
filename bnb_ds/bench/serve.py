"""``bnb-ds bench serve``: many clients at once beside one client alone, every answer compared with the pipeline's.

The service is the real one, a process of its own on the loopback interface. First one client asks alone, text after
text; then all clients for a while, each pausing for a random time (exponential) after every answer, which makes the
load: without pauses any service is as slow as its clients are many.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnb_ds.bench.flags import refuse_missing_device, refuse_missing_parent, versions, write
from bnb_ds.bench.generation.sources import read_texts
from bnb_ds.bench.measure import percentile_95
from bnb_ds.common.arguments import natural, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import BnbError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.server import require_packages

_TIMEOUT_SECONDS = 60


@dataclass
class Tally:
    """What clients have seen.

    Attributes:
        seconds: of each answer.
        wrong: answers that are not the pipeline's, or have another status than 200.
        lost: requests without an answer.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def figures(self, duration: float) -> dict[str, float]:
        """Counts, milliseconds and requests per second."""
        milliseconds = [1e3 * seconds for seconds in self.seconds] or [float("nan")]
        return {
            "answers": len(self.seconds),
            "wrong": len(self.wrong),
            "lost": len(self.lost),
            "p50_ms": statistics.median(milliseconds),
            "p95_ms": percentile_95(milliseconds),
            "requests_per_second": len(self.seconds) / max(duration, 1e-9),
        }


class Client:
    """One connection that asks one text at a time."""

    def __init__(self, port: int, expected: dict[str, str], tally: Tally) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
        self._expected, self._tally = expected, tally

    def ask(self, text: str) -> None:
        """Ask for one text's output, and note what comes."""
        body = json.dumps({"texts": [text]})
        begin = time.perf_counter()
        try:
            self._connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._tally.lost.append(repr(error))
            self._connection.close()
            return
        self._tally.seconds.append(time.perf_counter() - begin)
        if answer.status != 200 or json.loads(content)["outputs"][0]["text"] != self._expected[text]:
            self._tally.wrong.append(f"{answer.status} for {text!r}: {content!r}")


@contextlib.contextmanager
def running_service(model: Path, *flags: str) -> Iterator[int]:
    """The port of a service that is ended at the end.

    Raises:
        BnbError: it does not start; its own words.
    """
    command = [sys.executable, "-m", "bnb_ds.cli", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            if found := re.search(r"http://[^:]+:(\d+)", line):
                yield int(found[1])
                return
            said.append(line.strip())
        raise BnbError("the service did not start: " + (said[-1] if said else "no word"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_TIMEOUT_SECONDS)


def alone(port: int, texts: Sequence[str], expected: dict[str, str]) -> Tally:
    """One client, text after text; the first answer of the service is not counted."""
    Client(port, expected, Tally()).ask(texts[0])
    tally = Tally()
    client = Client(port, expected, tally)
    for text in texts:
        client.ask(text)
    return tally


def together(
    port: int, texts: Sequence[str], expected: dict[str, str], clients: int, seconds: float, pause: float
) -> Tally:
    """Many clients for a while, each with pauses of ``pause`` seconds in the mean after an answer."""
    tally = Tally()  # of all: appending to a list is one step for a thread
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        client, chance = Client(port, expected, tally), random.Random(number)
        while True:
            time.sleep(chance.expovariate(1 / pause) if pause else 0)
            if time.perf_counter() >= end:
                return
            client.ask(chance.choice(texts))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def table(results: dict[str, dict[str, float]], max_wait_ms: int) -> str:
    """Markdown, and the 95th percentile under load as a multiple of an unloaded request."""
    counts, rates = ("answers", "wrong", "lost"), ("requests_per_second", "p50_ms", "p95_ms")
    rows = (
        (name, *(str(row[what]) for what in counts), *(f"{row[what]:.1f}" for what in rates))
        for name, row in results.items()
    )
    shown = markdown_table(("", *counts, "requests/s", "p50 ms", "p95 ms"), rows)
    one, many = results.values()
    ratio = (many["p95_ms"] - max_wait_ms) / one["p50_ms"]
    return f"{shown}\np95 under load, less the batching wait of {max_wait_ms} ms: {ratio:.2f} times p50 alone"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench serve``."""
    command.add_argument("model", type=Path, help="an exported model")
    command.add_argument("--data", type=Path, required=True, help="texts: SQuAD JSON, JSON lines or lines, also .gz")
    command.add_argument("--num-sources", type=positive, default=200, help="texts taken (default %(default)s)")
    command.add_argument("--clients", type=positive, default=64, help="at once (default %(default)s)")
    command.add_argument("--seconds", type=positive, default=120, help="of load (default %(default)s)")
    command.add_argument("--pause-ms", type=natural, default=0, help="of a client after an answer, mean (default 0)")
    command.add_argument("--max-wait-ms", type=natural, default=5, help="of the service (default %(default)s)")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    require_packages()
    refuse_missing_device(args.device)
    refuse_missing_parent(args.json)
    texts = list(dict.fromkeys(text.strip() for text in read_texts(args.data, args.num_sources)))
    pipeline = BnbPipeline.from_pretrained(args.model, device=args.device)
    expected = dict(zip(texts, pipeline(texts), strict=True))
    chosen = ("clients", "seconds", "pause_ms", "max_wait_ms", "device")
    setting: dict[str, Any] = {
        **{name: getattr(args, name) for name in chosen},
        "texts": len(texts),
        **versions(),
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    flags = ("--device", args.device, "--max-wait-ms", str(args.max_wait_ms))
    with running_service(args.model, *flags) as port:
        one = alone(port, texts, expected)
        many = together(port, texts, expected, args.clients, args.seconds, args.pause_ms / 1e3)
    results = {"one client": one.figures(sum(one.seconds)), f"{args.clients} clients": many.figures(args.seconds)}
    print(table(results, args.max_wait_ms))
    for fault in (*one.wrong, *one.lost, *many.wrong, *many.lost)[:3]:
        print(f"for example: {fault}")
    write(args.json, {**setting, "results": results})
