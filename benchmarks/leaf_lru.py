"""A prefix cache as plain as can be: a tree of blocks, blocks of running reqs pinned, evicted from the leaves, least recently used first.
What the scheduler's own cache is compared with, given the same order of admissions and ends."""

from __future__ import annotations

import heapq


class LeafLru:
    """Holds at most `capacity` blocks. A block is known by its parent and a key of its content."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.now = 0
        self.ids: dict[tuple[int, int], int] = {}
        self.key: dict[int, tuple[int, int]] = {}
        self.children: dict[int, int] = {}
        self.pins: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []
        self.made = 0

    def _leaf(self, node: int) -> None:
        if not self.pins[node] and not self.children[node]:
            heapq.heappush(self.heap, (self.used[node], node))

    def _evict(self) -> None:
        while True:
            used, node = heapq.heappop(self.heap)
            if (
                node in self.key
                and used == self.used[node]
                and not self.pins[node]
                and not self.children[node]
            ):
                break
        parent = self.key[node][0]
        del self.ids[self.key.pop(node)], self.children[node], self.pins[node], self.used[node]
        if parent:
            self.children[parent] -= 1
            self._leaf(parent)

    def admit(self, keys: list[int], most: int) -> tuple[int, list[int]]:
        """Finds what it can of the first `most` blocks, adds the rest. Returns how many were found, and the path, now pinned."""
        path: list[int] = []
        parent = 0
        for key in keys[:most]:
            node = self.ids.get((parent, key))
            if node is None:
                break
            self.pins[node] += 1
            path.append(node)
            parent = node
        found = len(path)
        for key in keys[found:]:
            node = self.ids.get((parent, key))
            if node is None:
                if len(self.ids) >= self.capacity:
                    self._evict()
                self.made += 1
                node = self.ids[(parent, key)] = self.made
                self.key[node] = (parent, key)
                self.children[node] = self.pins[node] = 0
                if parent:
                    self.children[parent] += 1
            self.pins[node] += 1
            path.append(node)
            parent = node
        return found, path

    def end(self, path: list[int]) -> None:
        """Unpins a path; it was used now."""
        self.now += 1
        for node in reversed(path):
            self.pins[node] -= 1
            self.used[node] = self.now
            self._leaf(node)
