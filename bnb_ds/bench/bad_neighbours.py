"""Bad neighbours for the service under measurement, in a process of their own.

Run as ``python -m bnb_ds.bench.bad_neighbours PORT FILE``; FILE maps texts to their outputs with a beam of 32. Until
standard input is closed, the neighbours do these things at the same time:

* idle: hold hundreds of connections open that say nothing, or half of their headers;
* slow: send the body of a request byte by byte;
* vanish: ask for many texts with a beam of 32, and leave before the answer;
* beam: ask for one text with a beam of 32 again and again, and check the answer.

At the end it prints its counts as one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from pathlib import Path

BEAM_SIZE = 32
NUM_NEIGHBOURS = {"idle": 400, "slow": 8, "vanish": 4, "beam": 4}
_NUM_VANISHING_TEXTS = 20
_HEAD = "POST /generate HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def _request(texts: list[str]) -> bytes:
    body = json.dumps({"texts": texts, "options": {"beam_size": BEAM_SIZE}}).encode()
    return _HEAD.format(len(body)).encode() + body


class Neighbours:
    """All bad neighbours of one service.

    Args:
        port: of the service, on this machine.
        expected: outputs of texts with a beam of `BEAM_SIZE`.

    Attributes:
        counts: how often each thing happened.
    """

    def __init__(self, port: int, expected: dict[str, str]):
        self.counts: Counter[str] = Counter()
        self._port = port
        self._expected = expected
        self._texts = list(expected)

    async def run(self, until: asyncio.Event) -> None:
        """Annoy the service until the event is set."""
        tasks = [
            asyncio.create_task(self._again_and_again(kind, number))
            for kind, times in NUM_NEIGHBOURS.items()
            for number in range(times)
        ]
        await until.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _again_and_again(self, kind: str, number: int) -> None:
        chance = random.Random(f"{kind} {number}")
        await asyncio.sleep(chance.random())
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.counts[f"{kind} connections"] += 1
                try:
                    await getattr(self, f"_{kind}")(reader, writer, chance)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1 * chance.random())

    async def _idle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        writer.write(chance.choice((b"", b"P", b"POST /generate HTTP/1.1\r\nHost: bench\r\nX-Slow: ")))
        await reader.read()

    async def _slow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        request = _request(self._texts[:1])
        head = request.index(b"\r\n\r\n") + 4
        writer.write(request[:head])
        for place in range(head, len(request) - 1):
            writer.write(request[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0.5)

    async def _vanish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        writer.write(_request(chance.choices(self._texts, k=_NUM_VANISHING_TEXTS)))
        await writer.drain()
        await asyncio.sleep(0.2 * chance.random())

    async def _beam(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
        while True:
            text = chance.choice(self._texts)
            writer.write(_request([text]))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
            body = json.loads(await reader.readexactly(int(length.partition(":")[2])))
            status = head.split(" ")[1]
            self.counts[f"beam answers {status}"] += 1
            if status == "200" and body["outputs"][0]["text"] != self._expected[text]:
                self.counts["beam answers that are wrong"] += 1


async def _main(port: int, expected: dict[str, str]) -> None:
    neighbours, end = Neighbours(port, expected), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), end.set)
    await neighbours.run(end)
    print(json.dumps(neighbours.counts, sort_keys=True))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))))
