"""``bnb-ds bench serve``: measure the service with one client and with many, and check every answer.

The service runs as a separate process on the loopback interface. First one client sends text after text. Then all
clients send for a while, each pausing after every answer for a random (exponential) time. The pauses set the load:
without them, latency would only reflect the number of clients.
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

from bnb_ds.bench.flags import add_device, add_json, refuse_missing_device, refuse_missing_parent, versions, write
from bnb_ds.bench.generation.sources import read_texts
from bnb_ds.bench.measure import percentile_95
from bnb_ds.common.arguments import describe, natural, positive
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import BnbError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.server import require_packages

_TIMEOUT_SECONDS = 60


@dataclass
class Tally:
    """The answers that clients got.

    Attributes:
        seconds: latency of each answer.
        wrong: answers that differ from the pipeline's, or whose status is not 200.
        lost: requests without an answer.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def figures(self, duration: float) -> dict[str, float]:
        """Counts, latencies in milliseconds, and requests per second."""
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
    """One connection that sends one text at a time."""

    def __init__(self, port: int, expected: dict[str, str], tally: Tally) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
        self._expected, self._tally = expected, tally

    def ask(self, text: str) -> None:
        """Request the output of one text, and record the answer."""
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
    """Run a service; yields its port, and stops it at the end.

    Raises:
        BnbError: the service does not start; the message has its last line.
    """
    command = [sys.executable, "-m", "bnb_ds.cli", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            if found := re.search(r"http://[^:]+:(\d+)", line):
                rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop the service
                rest.start()
                yield int(found[1])
                return
            said.append(line.strip())
        raise BnbError("the service did not start: " + (said[-1] if said else "it printed nothing"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_TIMEOUT_SECONDS)


def alone(port: int, texts: Sequence[str], expected: dict[str, str]) -> Tally:
    """Let one client send text after text. The first answer of the service is not counted."""
    Client(port, expected, Tally()).ask(texts[0])
    tally = Tally()
    client = Client(port, expected, tally)
    for text in texts:
        client.ask(text)
    return tally


def together(
    port: int, texts: Sequence[str], expected: dict[str, str], clients: int, seconds: float, pause: float
) -> Tally:
    """Let many clients send for ``seconds``; each pauses after an answer, for ``pause`` seconds on average."""
    tally = Tally()  # shared by all threads: appending to a list is atomic
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
    """A Markdown table, and the 95th percentile under load as a multiple of the median of one client."""
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
    describe(
        command,
        "Measure the latency of the service with one client and with many, and check every answer.",
        "bnb-ds bench serve work/models/tiny --data texts.txt --clients 16 --seconds 30 --pause-ms 200",
    )
    command.add_argument("model", type=Path, help="directory that `bnb-ds export` wrote")
    command.add_argument(
        "--data", type=Path, required=True, help="texts: SQuAD JSON, JSON lines or plain lines, also as .gz"
    )
    for flag, kind, default, help_text in (
        ("--num-sources", positive, 200, "number of texts"),
        ("--clients", positive, 64, "number of clients"),
        ("--seconds", positive, 120, "duration of the load in seconds"),
        ("--pause-ms", natural, 0, "mean pause of a client after an answer, in milliseconds"),
        ("--max-wait-ms", natural, 5, "the service's --max-wait-ms"),
    ):
        command.add_argument(flag, type=kind, default=default, help=f"{help_text} (default %(default)s)")
    add_device(command)
    add_json(command)
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
