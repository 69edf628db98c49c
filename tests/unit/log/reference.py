"""The tree as RFC 9162 writes it down: recursive, slow, and sharing nothing with the product."""

from __future__ import annotations

import hashlib


def sha(data):
    return hashlib.sha256(data).digest()


def leaf(record):
    return sha(b"\0" + record)


def split(count):
    k = 1
    while k * 2 < count:
        k *= 2
    return k


class SlowTree:
    """Records, and every hash over any range of them, remembered once computed."""

    def __init__(self, records):
        self.records = list(records)
        self._known = {}

    def root(self, lo, hi):
        """Section 2.1.1: MTH(D[lo:hi])."""
        if lo == hi:
            return sha(b"")
        if (lo, hi) not in self._known:
            if hi - lo == 1:
                self._known[lo, hi] = leaf(self.records[lo])
            else:
                middle = lo + split(hi - lo)
                self._known[lo, hi] = sha(b"\1" + self.root(lo, middle) + self.root(middle, hi))
        return self._known[lo, hi]

    def path(self, m, lo, hi):
        """Section 2.1.3.1: PATH(m, D[lo:hi])."""
        if hi - lo == 1:
            return []
        k = split(hi - lo)
        if m < k:
            return [*self.path(m, lo, lo + k), self.root(lo + k, hi)]
        return [*self.path(m - k, lo + k, hi), self.root(lo, lo + k)]

    def consistency(self, m, lo, hi, complete=True):
        """Section 2.1.4.1: SUBPROOF(m, D[lo:hi], complete)."""
        if m == hi - lo:
            return [] if complete else [self.root(lo, hi)]
        k = split(hi - lo)
        if m <= k:
            return [*self.consistency(m, lo, lo + k, complete), self.root(lo + k, hi)]
        return [*self.consistency(m - k, lo + k, hi, False), self.root(lo, lo + k)]

    def tile(self, level, index, width):
        """c2sp.org/tlog-tiles: the hashes of tile (level, index), from the records alone."""
        span = 256**level
        start = index * 256 * span
        return b"".join(self.root(start + i * span, start + (i + 1) * span) for i in range(width))
