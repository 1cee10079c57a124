"""Fair turns: which of the waiting texts share the next batch.

Every address has a virtual time, and so has every connection of an address. A text moves both on by its cost, and the
next turn goes to the lowest time. So a client that asks for wide beams or many texts waits for the others, and they do
not wait for it. A client that was away gets no credit: its time starts at the present.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

#: clocks with more entries than this are tidied up
_MOST_ENTRIES = 1024


class _Clock:
    """The virtual times of clients."""

    def __init__(self) -> None:
        self.now = 0.0
        self._until: dict[Hashable, float] = {}

    def time_of(self, client: Hashable) -> float:
        return max(self._until.get(client, 0.0), self.now)

    def charge(self, client: Hashable, cost: float) -> None:
        start = self.time_of(client)
        self.now = max(self.now, start)
        self._until[client] = start + cost
        if len(self._until) > _MOST_ENTRIES:  # clients without debts are like new ones
            self._until = {other: until for other, until in self._until.items() if until > self.now}


class Turns:
    """The waiting texts of all clients.

    Its items have these attributes: ``client`` (a pair of an address and one of its connections), ``work`` (items with
    equal work can be decoded together), and ``cost`` (source tokens and slots).
    """

    def __init__(self) -> None:
        self.cost = 0
        self._items: dict[Any, None] = {}  # in the order of arrival
        self._queues: dict[tuple[str, Hashable], deque[Any]] = {}
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
        self._queues.setdefault(item.client, deque()).append(item)
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
            self._queues[item.client].popleft()
            self._removed(item)
            address, _ = item.client
            self._addresses.charge(address, item.cost)
            self._connections[address].charge(item.client, item.cost)
            batch.append(item)
            cost += item.cost
        if len(self._connections) > _MOST_ENTRIES:
            waiting = {address for address, _ in self._queues}
            self._connections = {name: clock for name, clock in self._connections.items() if name in waiting}
        return batch

    def _in_turn(self) -> Iterator[Any]:
        """Items of the same work, the lowest time first. The caller removes and charges each before the next."""
        heap = [(*self._times(client), number, client) for number, client in enumerate(self._queues)]
        heapq.heapify(heap)
        work: Any = None
        is_first = True
        while heap:
            *known, number, client = heap[0]
            times = self._times(client)
            if list(times) != known:  # another connection of this address had a turn; times only grow
                heapq.heapreplace(heap, (*times, number, client))
                continue
            queue = self._queues.get(client)
            if queue and (is_first or queue[0].work == work):
                work, is_first = queue[0].work, False
                yield queue[0]
            else:
                heapq.heappop(heap)

    def _times(self, client: tuple[str, Hashable]) -> tuple[float, float]:
        clock = self._connections.setdefault(client[0], _Clock())
        return self._addresses.time_of(client[0]), clock.time_of(client)

    def _removed(self, item: Any) -> None:
        del self._items[item]
        self.cost -= item.cost
        if not self._queues[item.client]:
            del self._queues[item.client]
