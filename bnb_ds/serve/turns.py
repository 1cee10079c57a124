"""Fair turns: which of the waiting texts share the next batch.

Every address has a virtual time, and so has every connection of an address. A text moves both on by its cost, and the
next turn goes to the lowest time. So a client that asks for wide beams or many texts waits for the others, and they do
not wait for it. A client that was away gets no credit: its time starts at the present.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Container, Hashable, Iterator
from typing import Any

#: clocks with more entries than this are tidied up
_MOST_ENTRIES = 1024


class _Clock:
    """The virtual times of clients. The present moves on by what each of those who wait would get at equal shares."""

    def __init__(self) -> None:
        self._now = 0.0
        self._times: dict[Hashable, float] = {}

    def time_of(self, client: Hashable) -> float:
        """The time of a client that waits."""
        return self._times[client]

    def begin(self, client: Hashable) -> None:
        """Let a client wait from now on."""
        self._times[client] = max(self._times.get(client, 0.0), self._now)

    def end(self, client: Hashable) -> None:
        """Let a client wait no more. It keeps its debts."""
        if self._times[client] <= self._now:
            del self._times[client]

    def charge(self, client: Hashable, cost: float, num_waiting: int) -> None:
        """Charge a client for a turn, which it took from ``num_waiting`` clients with itself."""
        self._times[client] += cost
        self._now += cost / num_waiting

    def forget(self, waiting: Container[Hashable]) -> None:
        """Drop the past of clients that do not wait, if there are many. Those without debts are like new ones."""
        if len(self._times) > _MOST_ENTRIES:
            self._times = {
                client: time for client, time in self._times.items() if client in waiting or time > self._now
            }


class Turns:
    """The waiting texts of all clients.

    Its items have these attributes: ``client`` (a pair of an address and one of its connections), ``work`` (items with
    equal work can be decoded together), and ``cost`` (source tokens and slots).
    """

    def __init__(self) -> None:
        self.cost = 0
        self._items: dict[Any, None] = {}  # in the order of arrival
        self._queues: dict[tuple[str, Hashable], deque[Any]] = {}
        self._num_queues: Counter[str] = Counter()  # of each address that has one
        self._addresses = _Clock()
        self._connections: dict[str, _Clock] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def oldest(self) -> Any:
        """The item that arrived first. There must be one."""
        return next(iter(self._items))

    def add(self, item: Any) -> None:
        """Append an item to the queue of its client."""
        if item.client not in self._queues:
            self._queues[item.client] = deque()
            self._begin(item.client)
        self._queues[item.client].append(item)
        self._items[item] = None
        self.cost += item.cost

    def discard(self, item: Any) -> None:
        """Remove an item, if it still waits."""
        if item in self._items:
            self._queues[item.client].remove(item)
            self._removed(item)

    def take(self, budget: int) -> list[Any]:
        """The next batch: items of equal work that cost at most ``budget`` together, or a single item.

        The client with the lowest time chooses the work. Others whose next item has the same work join in the order of
        their times.
        """
        batch: list[Any] = []
        cost = 0
        for item in self._in_turn():
            if batch and cost + item.cost > budget:
                break
            address, _ = item.client
            self._addresses.charge(address, item.cost, len(self._num_queues))
            self._connections[address].charge(item.client, item.cost, self._num_queues[address])
            self._queues[item.client].popleft()
            self._removed(item)
            batch.append(item)
            cost += item.cost
        self._addresses.forget(self._num_queues)
        for clock in self._connections.values():
            clock.forget(self._queues)
        if len(self._connections) > _MOST_ENTRIES:
            self._connections = {name: clock for name, clock in self._connections.items() if name in self._num_queues}
        return batch

    def _in_turn(self) -> Iterator[Any]:
        """Items of the same work, the lowest time first. The caller removes and charges each before the next."""
        heap = [(*self._times(client), number, client) for number, client in enumerate(self._queues)]
        heapq.heapify(heap)
        work: Any = None
        is_first = True
        while heap:
            *known, number, client = heap[0]
            if client not in self._queues:
                heapq.heappop(heap)
                continue
            times = self._times(client)
            if list(times) != known:  # another connection of this address had a turn; times only grow
                heapq.heapreplace(heap, (*times, number, client))
                continue
            queue = self._queues[client]
            if is_first or queue[0].work == work:
                work, is_first = queue[0].work, False
                yield queue[0]
            else:
                heapq.heappop(heap)

    def _times(self, client: tuple[str, Hashable]) -> tuple[float, float]:
        return self._addresses.time_of(client[0]), self._connections[client[0]].time_of(client)

    def _begin(self, client: tuple[str, Hashable]) -> None:
        address, _ = client
        if address not in self._num_queues:
            self._addresses.begin(address)
        self._num_queues[address] += 1
        self._connections.setdefault(address, _Clock()).begin(client)

    def _removed(self, item: Any) -> None:
        del self._items[item]
        self.cost -= item.cost
        if self._queues[item.client]:
            return
        address, _ = item.client
        del self._queues[item.client]
        self._connections[address].end(item.client)
        self._num_queues[address] -= 1
        if not self._num_queues[address]:
            del self._num_queues[address]
            self._addresses.end(address)
