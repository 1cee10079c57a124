"""The guardian of one rank: a small separate process that ends the rank when the job cannot go on.

A rank may die, be stopped by a signal, hang, or be on a host that loses its network. Then the other ranks wait in a
collective operation, and the launchers wait for the ranks. A stopped process cannot notice this itself. So every rank
starts this program as a second process. It imports only the standard library.

    rank --(pipe: state, every second)--> guardian --(TCP)--> guardian of rank 0

The guardian of rank 0 receives the state of every rank. When a rank is lost, it prints one line that names the rank and
tells all guardians that the job is over. Each guardian then kills its rank, so that every launcher sees a failed
process and ends. A guardian that loses contact with rank 0 also kills its rank.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_TICK_SECONDS = 0.25
_SEND_SECONDS = 1.0
#: after one rank has failed, the others have this long to report the same error before they are killed
_FAILURE_GRACE_SECONDS = 15.0
#: after a rank's connections broke, the guardians have this long to find the rank that caused it
_CAUSE_GRACE_SECONDS = 3.0
_MAX_LINE_BYTES = 1 << 16
_ENDED = ("bye", "failed")
_WAY_OUT = "the whole job ends; its checkpoints are complete: start again with --resume auto"


@dataclass
class RankState:
    """What a guardian knows about one rank."""

    rank: int
    host: str = "?"
    pid: int = 0
    #: beat (it runs), bye (it has finished), failed, lost (its connections broke), died, silent (it does not run)
    event: str = "beat"
    step: int = 0
    phase: str = "start"
    #: number of marks passed so far; every rank passes the same marks in the same order
    progress: int = 0
    #: counts what a rank does on its own; unlike ``progress`` it says nothing about which rank is behind
    activity: int = 0
    message: str = ""
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    event_since: float = field(default_factory=time.monotonic)

    def update(self, news: dict[str, Any]) -> None:
        now = time.monotonic()
        if (news["progress"], news["activity"]) != (self.progress, self.activity):
            self.moved = now
        if news["event"] != self.event:
            self.event_since = now
        self.heard = now
        for name in ("host", "pid", "event", "step", "phase", "progress", "activity", "message"):
            setattr(self, name, news[name])

    def shift(self, seconds: float) -> None:
        """Ignore a pause of that many seconds in which this guardian itself did not run."""
        self.heard += seconds
        self.moved += seconds
        self.event_since += seconds

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    @property
    def place(self) -> str:
        return f"step {self.step}, {self.phase}"


def judge(states: list[RankState], now: float, silence_seconds: float, hang_seconds: float) -> str | None:
    """Decide whether the job can go on.

    Returns:
        A message that names the rank at fault; "" if the job must end and the failed ranks have already reported why;
        None if all is well.
    """
    for state in states:
        if state.event == "died":
            return f"{state} died in {state.place}"
        if state.event == "silent":
            return f"{state} has not run for {silence_seconds:g} s; it stopped in {state.place}"
        if state.event not in _ENDED and now - state.heard > silence_seconds:
            return f"{state} cannot be reached for {silence_seconds:g} s; it was in {state.place}"
    failed = [state for state in states if state.event == "failed"]
    if failed:  # these ranks have reported their errors
        # Other ranks may be about to report the same error. Ranks that only lost their connections have nothing to add.
        all_told = all(state.event in (*_ENDED, "lost") for state in states)
        return "" if all_told or now - min(s.event_since for s in failed) > _FAILURE_GRACE_SECONDS else None
    running = [state for state in states if state.event != "bye"]
    lost = [state for state in running if state.event == "lost"]
    if lost and now - min(state.event_since for state in lost) > _CAUSE_GRACE_SECONDS:
        behind = min(running, key=lambda state: state.progress)
        if behind.event != "lost" and behind.progress < lost[0].progress:
            return f"{behind} hangs in {behind.place}; rank {lost[0].rank} waited for it and then lost its connections"
        return f"{lost[0]} lost its connections in {lost[0].place}: {lost[0].message}"
    # A rank that ends is progress too: those that have waited for it end next.
    if running and all(now - max(state.moved, state.event_since) > hang_seconds for state in states):
        behind = min(running, key=lambda state: state.progress)
        # If all are in the same phase, one may hang before the collective operation in which the others wait.
        at_same_place = len(running) > 1 and behind.progress == max(s.progress for s in running)
        who = "all ranks hang" if at_same_place else f"{behind} hangs"
        return f"{who}: no progress for {hang_seconds:g} s in {behind.place}"
    return None


class Lines:
    """Splits a stream of bytes into complete lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ValueError("a line without an end")
        for line in lines:
            yield line.decode("utf-8", "replace")


class Guardian:
    """Watches one rank. The guardian of rank 0 also watches the other guardians."""

    def __init__(self, rank: int, world_size: int, silence_seconds: float, hang_seconds: float) -> None:
        self._rank_pid = os.getppid()
        self._own = RankState(rank, socket.gethostname(), self._rank_pid)
        self._states = [self._own] if rank else [self._own, *map(RankState, range(1, world_size))]
        self._silence, self._hang = silence_seconds, hang_seconds
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Lines] = {}
        self._peers: list[socket.socket] = []
        self._hub: socket.socket | None = None
        self._hub_heard = time.monotonic()
        self._token = ""
        self._over = False
        self._refused = False

    def _watch(self, source: Any, kind: str) -> None:
        self._selector.register(source, selectors.EVENT_READ, kind)
        self._lines[source.fileno()] = Lines()

    def listen(self, token: str) -> int:
        """Listen for the other guardians, and return the port."""
        self._token = token
        listener = socket.create_server(("", 0), backlog=4096)
        self._selector.register(listener, selectors.EVENT_READ, "listener")
        return listener.getsockname()[1]

    def connect(self, host: str, port: int, token: str) -> None:
        self._hub = socket.create_connection((host, port), timeout=30)
        self._hub.sendall(f"{token}\n".encode())
        self._watch(self._hub, "hub")

    def run(self) -> None:
        stdin = sys.stdin.buffer
        assert isinstance(stdin, io.BufferedReader)
        self._watch(stdin.raw, "rank")
        last_send, last_event = 0.0, "beat"
        last_loop = time.monotonic()
        while not self._over:
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._read(key.fileobj, key.data)
            now = time.monotonic()
            self._forgive_pause(now - last_loop)
            last_loop = now
            self._look_at_own_rank(now)
            verdict = judge(self._states, now, self._silence, self._hang) if self._own.rank == 0 else None
            if self._own.rank and not self._over and now - self._hub_heard > self._silence:
                verdict = f"{self._own} cannot reach rank 0 for {self._silence:g} s"
            if verdict is not None:
                self._end(verdict)
            elif self._own.rank == 0 and all(state.event == "bye" for state in self._states):
                self._say_over()
            elif now - last_send > _SEND_SECONDS or self._own.event != last_event:
                last_send, last_event = now, self._own.event
                self._send()

    def _forgive_pause(self, seconds: float) -> None:
        # If the whole job was suspended (by a batch system, or a closed laptop), no rank counts as silent.
        if seconds > 5 * _SEND_SECONDS:
            self._hub_heard += seconds
            for state in self._states:
                state.shift(seconds)

    def _look_at_own_rank(self, now: float) -> None:
        own = self._own
        if own.event in _ENDED:
            return
        event = own.event
        if os.getppid() != self._rank_pid:
            event = "died"
        elif now - own.heard > self._silence:
            event = "silent"
        if event != own.event:
            own.event, own.event_since = event, now

    def _read(self, source: Any, kind: str) -> None:
        if kind == "listener":
            self._accept(source)
            return
        try:
            data = os.read(source.fileno(), 1 << 16)
        except OSError:
            data = b""
        if not data:
            self._lost(source, kind)
            return
        try:
            lines = list(self._lines[source.fileno()].feed(data))
        except ValueError:  # no guardian writes such a line
            self._lost(source, kind)
            return
        for line in lines:
            if source not in self._selector.get_map():  # an earlier line has closed it
                return
            self._take(source, self._selector.get_key(source).data, line)

    def _accept(self, listener: Any) -> None:
        try:
            peer, _ = listener.accept()
        except OSError as error:
            # No more files may be open, or the peer has gone. A rank that cannot connect is missed by the clock.
            if not self._refused:
                print(f"bnb_ds: warning: a rank cannot connect to its watchdog: {error}", file=sys.stderr, flush=True)
            self._refused = True
            time.sleep(_TICK_SECONDS / 10)
            return
        peer.settimeout(5)
        self._watch(peer, "new peer")

    def _take(self, source: Any, kind: str, line: str) -> None:
        if kind == "rank":
            self._own.update({**json.loads(line), "host": self._own.host, "pid": self._rank_pid})
        elif kind == "hub":
            self._hub_heard = time.monotonic()
            if line == "over":
                self._over = True
            elif line == "kill":
                self._kill_rank()
        elif kind == "new peer":
            if line != self._token:
                self._lost(source, kind)
                return
            self._peers.append(source)
            self._selector.modify(source, selectors.EVENT_READ, "peer")
        else:
            news = json.loads(line)
            self._states[news["rank"]].update(news)

    def _lost(self, source: Any, kind: str) -> None:
        """Drop a stream that has ended. Its rank is judged later, by the time since it was last heard."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(source)
        if kind in ("peer", "new peer"):
            source.close()
            self._peers = [peer for peer in self._peers if peer is not source]
        elif kind == "hub":
            self._hub = None
            if self._own.event in _ENDED:
                self._over = True

    def _send(self) -> None:
        if self._own.rank == 0:
            self._tell_peers("ok")
        elif self._hub is not None:
            names = ("rank", "host", "pid", "event", "step", "phase", "progress", "activity", "message")
            news = {name: getattr(self._own, name) for name in names}
            with contextlib.suppress(OSError):
                self._hub.sendall(json.dumps(news).encode() + b"\n")
        if self._own.event == "failed" and os.getppid() != self._rank_pid and self._own.rank:
            self._over = True  # the rank has ended, and the guardian of rank 0 knows it

    def _tell_peers(self, word: str) -> None:
        for peer in list(self._peers):
            try:
                peer.sendall(f"{word}\n".encode())
            except OSError:
                self._lost(peer, "peer")

    def _say_over(self) -> None:
        self._tell_peers("over")
        self._over = True

    def _end(self, verdict: str) -> None:
        if verdict:
            print(f"bnb_ds: error: {verdict}; {_WAY_OUT}", file=sys.stderr, flush=True)
        self._tell_peers("kill")
        self._kill_rank()

    def _kill_rank(self) -> None:
        # A rank that failed with its own error has time to report it.
        deadline = self._own.event_since + _FAILURE_GRACE_SECONDS if self._own.event == "failed" else 0.0
        while os.getppid() == self._rank_pid and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        if os.getppid() == self._rank_pid:
            os.kill(self._rank_pid, signal.SIGKILL)
        self._over = True


def main() -> None:
    """Run ``guardian.py RANK WORLD_SIZE SILENCE_SECONDS HANG_SECONDS``; standard input is the pipe from the rank.

    The guardian of rank 0 prints its port. The others connect to it and print 0.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # these signals are for the rank; a guardian lives as long as its rank
    # One connection for each rank of the job; the usual soft limit is 1,024 open files.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    guardian = Guardian(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    # The first line says where the guardians meet. It is read byte by byte, so that no later line is read with it.
    first = b""
    while not first.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        first += byte
    meeting = json.loads(first)
    if "port" in meeting:
        guardian.connect(meeting["host"], meeting["port"], meeting["token"])
        port = 0
    else:
        port = guardian.listen(meeting["token"])
    print(port, flush=True)
    guardian.run()


if __name__ == "__main__":
    main()
