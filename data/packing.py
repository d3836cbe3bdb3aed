"""Best-fit-decreasing packing of documents into rows of a fixed length (arXiv 2404.10830, sec. 3).

Documents are packed whole. One that is longer than a row is cut into row-long pieces *before*
packing (:func:`piece_lengths`), and each piece counts as a document of its own.
"""

import numpy as np


def piece_lengths(length: int, capacity: int) -> list[int]:
    """Lengths of the pieces of a document of `length` tokens: all `capacity` but the last."""
    assert length > 0 and capacity > 0
    whole, rest = divmod(length, capacity)
    return [capacity] * whole + ([rest] if rest else [])


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Assign each document to a row, longest first, into the fullest row that still has room.

    All documents of one length are placed together: having put a document into the fullest
    fitting row, best fit puts the next of the same length there again while it fits, so rows of
    equal space can be filled in whole runs. The result equals the one-at-a-time algorithm, in
    time that grows with the number of distinct lengths rather than of documents.

    Args:
        lengths: [documents] tokens of each document, 1 .. capacity.
        capacity: tokens of a row.

    Returns:
        [documents] the row of each document; rows count from 0 without gaps.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert lengths.size == 0 or (lengths.min() >= 1 and lengths.max() <= capacity)
    rows_of = np.empty(lengths.size, dtype=np.int64)
    shelf = _Shelf(capacity)
    longest_first = np.argsort(-lengths, kind="stable")
    changes = np.flatnonzero(np.diff(lengths[longest_first])) + 1
    for documents in np.split(longest_first, changes):
        if documents.size:
            rows_of[documents] = shelf.place(documents.size, int(lengths[documents[0]]))
    return rows_of


def row_contents(rows_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order documents by row, and inside a row as they came, so that length says nothing of place.

    Returns:
        ([documents] document numbers in packed order, [rows] place in it of each row's first).
    """
    order = np.argsort(rows_of, kind="stable")
    firsts = np.flatnonzero(np.diff(rows_of[order], prepend=-1))
    return order, firsts


class _Shelf:
    """Open rows, by the space left in them; `_spaces` is a bit set of the spaces present."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._num_rows = 0
        self._rows: list[list[int]] = [[] for _ in range(capacity + 1)]
        self._spaces = 0

    def place(self, count: int, length: int) -> np.ndarray:
        """Rows of `count` documents of one length."""
        placed: list[np.ndarray] = []
        while count:
            space = self._tightest(length)
            fit = space // length
            rows = self._take(space, -(-count // fit))
            placed.append(np.repeat(rows, fit)[:count])
            count -= placed[-1].size
            in_last = placed[-1].size - (rows.size - 1) * fit
            self._put(rows[:-1], space - fit * length)
            self._put(rows[-1:], space - in_last * length)
        return np.concatenate(placed)

    def _tightest(self, length: int) -> int:
        fitting = self._spaces >> length
        if not fitting:
            return self._capacity
        return length + (fitting & -fitting).bit_length() - 1

    def _take(self, space: int, count: int) -> np.ndarray:
        rows = self._rows[space]
        if not rows:
            assert space == self._capacity
            self._num_rows += count
            return np.arange(self._num_rows - count, self._num_rows)
        taken = rows[-count:]
        del rows[-count:]
        if not rows:
            self._spaces &= ~(1 << space)
        return np.array(taken)

    def _put(self, rows: np.ndarray, space: int) -> None:
        if rows.size and space:
            self._rows[space].extend(rows.tolist())
            self._spaces |= 1 << space
