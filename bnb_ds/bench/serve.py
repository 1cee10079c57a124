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
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bnb_ds.bench.bad_neighbours import BEAM_SIZE
from bnb_ds.bench.flags import add_device, add_json, refuse_missing_device, refuse_missing_parent, versions, write
from bnb_ds.bench.generation.sources import read_texts
from bnb_ds.bench.measure import percentile_95
from bnb_ds.common.arguments import describe, natural, positive
from bnb_ds.common.children import ctrl_c_held_back
from bnb_ds.common.markdown import markdown_table
from bnb_ds.errors import BnbError
from bnb_ds.generate.pipeline import BnbPipeline
from bnb_ds.serve.server import require_packages

_TIMEOUT_SECONDS = 60
_NUM_BEAM_TEXTS = 50


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


class Service:
    """A running service.

    Attributes:
        port: where it listens.
        memory: its resident bytes, once a second.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self.memory: list[int] = []
        self._process = process
        self._last = ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._watch)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self._process.stderr:  # a full pipe would stop the service
            self._last = line.strip()

    def _watch(self) -> None:
        watched = psutil.Process(self._process.pid)
        with contextlib.suppress(psutil.Error):
            while self._process.poll() is None:
                self.memory.append(watched.memory_info().rss)
                time.sleep(1)

    def stop(self) -> str:
        """End the service with SIGTERM, and return its last line."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=2 * _TIMEOUT_SECONDS)
        for thread in self._threads:
            thread.join()
        return self._last


@contextlib.contextmanager
def running_service(model: Path, *flags: str) -> Iterator[Service]:
    """Run a service, and stop it at the end.

    Raises:
        BnbError: the service does not start; the message has its last line.
    """
    command = [sys.executable, "-m", "bnb_ds.cli", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            if found := re.search(r"http://[^:]+:(\d+)", line):
                service = Service(process, int(found[1]))
                yield service
                service.stop()
                return
            said.append(line.strip())
        raise BnbError("the service did not start: " + (said[-1] if said else "it printed nothing"))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=_TIMEOUT_SECONDS)


@contextlib.contextmanager
def bad_neighbours(port: int, expected: dict[str, str]) -> Iterator[dict[str, int]]:
    """Let bad neighbours annoy a service. The yielded dictionary has their counts at the end."""
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
        command = [sys.executable, "-m", "bnb_ds.bench.bad_neighbours", str(port), str(file)]
        with ctrl_c_held_back():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield counts
        finally:
            said, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
    counts.update(json.loads(said))


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
    one, many, *beside = results.values()
    ratio = (many["p95_ms"] - max_wait_ms) / one["p50_ms"]
    shown += f"\np95 under load, less the batching wait of {max_wait_ms} ms: {ratio:.2f} times p50 alone"
    for row in beside:
        shown += f"\np95 beside bad neighbours: {row['p95_ms'] / many['p95_ms']:.2f} times p95 without them"
    return shown


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
    command.add_argument(
        "--bad-neighbours",
        action="store_true",
        help="repeat the load beside clients that hold idle connections, send slow bodies, leave before the answer, "
        "and ask for a beam of 32; then end the service under load",
    )
    add_device(command)
    add_json(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    require_packages()
    refuse_missing_device(args.device)
    refuse_missing_parent(args.json, inputs=[args.data], overwrite=args.overwrite)
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
    flags = ("--device", args.device, "--max-wait-ms", str(args.max_wait_ms), "--max-connections", "512")
    flags += ("--max-connections-per-client", "512")
    load = (texts, expected, args.clients, args.seconds, args.pause_ms / 1e3)
    facts: dict[str, Any] = {}
    with running_service(args.model, *flags) as service:
        one = alone(service.port, texts, expected)
        many = together(service.port, *load)
        tallies = {"one client": one, f"{args.clients} clients": many}
        if args.bad_neighbours:
            beams = _beam_outputs(args.model, args.device, texts)
            with bad_neighbours(service.port, beams) as counts:
                tallies["beside bad neighbours"] = together(service.port, *load)
                facts["memory"] = service.memory[-args.seconds :]
                facts["end"] = _end_under_load(service, texts, expected, args.clients)
            facts["neighbours"] = counts
    seconds = {"one client": sum(one.seconds)}
    results = {name: tally.figures(seconds.get(name, args.seconds)) for name, tally in tallies.items()}
    print(table(results, args.max_wait_ms))
    if facts:
        print(_about(facts))
    for fault in [fault for tally in tallies.values() for fault in (*tally.wrong, *tally.lost)][:3]:
        print(f"for example: {fault}")
    write(args.json, {**setting, "results": results, **facts})


def _beam_outputs(model: Path, device: str, texts: Sequence[str]) -> dict[str, str]:
    """The outputs of some texts with the beam that bad neighbours ask for."""
    pipeline = BnbPipeline.from_pretrained(model, device=device, beam_size=BEAM_SIZE)
    some = list(texts[:_NUM_BEAM_TEXTS])
    return dict(zip(some, pipeline(some), strict=True))


def _end_under_load(service: Service, texts: Sequence[str], expected: dict[str, str], clients: int) -> dict[str, Any]:
    """End the service while clients send, and compare what it accepted with what it answered."""
    last: list[str] = []
    end = threading.Timer(1, lambda: last.append(service.stop()))
    end.start()
    # A client whose idle connection is being closed counts a loss, so the service's own counts decide.
    tally = together(service.port, texts, expected, clients, 2, 0.05)
    end.join()
    found = re.search(r"(\d+) requests accepted, (\d+) answered(?:, (\d+) whose clients left)?", last[0])
    if found is None:
        raise BnbError(f"the service did not end in order: {last[0]}")
    accepted, answered, gone = (int(number or 0) for number in found.groups())
    return {
        "answers": len(tally.seconds),
        "wrong": len(tally.wrong),
        "accepted": accepted,
        "answered": answered,
        "clients_left": gone,
        "lost": accepted - answered - gone,
    }


def _about(facts: dict[str, Any]) -> str:
    """Memory, the end, and the neighbours, in words."""
    memory, end = facts["memory"], facts["end"]
    quarter = memory[len(memory) // 4] if memory else 0
    counts = ", ".join(f"{count} {name}" for name, count in sorted(facts["neighbours"].items()))
    return (
        f"memory of the service: {quarter / 1e6:.0f} MB after a quarter of that time, "
        f"{(memory or [0])[-1] / 1e6:.0f} MB at its end\n"
        f"SIGTERM under load: {end['accepted']} requests accepted in all, {end['answered']} answered, "
        f"{end['clients_left']} clients left, {end['lost']} lost; {end['wrong']} of the last {end['answers']} answers "
        f"wrong\nneighbours: {counts}"
    )
