"""Overlap between texts by n-grams of words: what was copied, whatever stands around it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

_WORD = re.compile(r"[\w'-]+")
# Odd 64-bit constants of SplitMix64's mixing; a window's hash is a polynomial in one of them.
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def window_hashes(words: list[str], n: int) -> np.ndarray:
    """64-bit hashes of every n words in a row; none where there are fewer than n.

    Equal windows have equal hashes; unequal ones differ but for a chance of 2^-64 or so a pair.
    """
    if len(words) < n:
        return np.empty(0, np.uint64)
    codes = np.array([_code(word) for word in words], dtype=np.uint64)
    hashes = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n):
            hashes = hashes * _BASE + codes[offset : offset + hashes.size]
        return (hashes ^ (hashes >> np.uint64(31))) * _MIX


def _code(word: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


@dataclass
class Overlaps:
    """What was found: how many texts share a window with each group, and the first of them."""

    checked: int = 0
    found: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str, str]] = field(default_factory=list)


class NgramIndex:
    """The windows of some held-out texts, and which group each belongs to.

    Args:
        groups: held-out texts of each group, such as the questions of a test set.
        n: words of a window; 13 is customary (GPT-3, arXiv 2005.14165, appendix C). Texts of fewer
            words are compared whole.
    """

    def __init__(self, groups: Mapping[str, Iterable[str]], n: int = 13) -> None:
        self.n, self.names = n, list(groups)
        self.short: dict[tuple[str, ...], int] = {}
        hashes: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        for number, texts in enumerate(groups.values()):
            for text in texts:
                words = words_of(text)
                if len(words) < n:
                    self.short[tuple(words)] = number
                own = window_hashes(words, n)
                hashes.append(own)
                owners.append(np.full(own.size, number))
        joined = np.concatenate([np.empty(0, np.uint64), *hashes])
        order = np.argsort(joined, kind="stable")
        self.hashes = joined[order]
        self.owners = np.concatenate([np.empty(0, np.int64), *owners])[order]

    def group_of(self, text: str) -> tuple[str, str] | None:
        """The first group that a text shares a window with, and the window; None where none."""
        words = words_of(text)
        if (owner := self.short.get(tuple(words))) is not None:
            return self.names[owner], " ".join(words)
        own = window_hashes(words, self.n)
        places = np.searchsorted(self.hashes, own)
        places[places == self.hashes.size] = 0
        if not self.hashes.size or not (hits := np.flatnonzero(self.hashes[places] == own)).size:
            return None
        first = int(hits[0])
        return self.names[int(self.owners[places[first]])], " ".join(words[first : first + self.n])

    def check(self, texts: Iterable[tuple[str, str]]) -> Overlaps:
        """Compare texts, each with its place, with all held-out ones."""
        overlaps = Overlaps()
        for place, text in texts:
            overlaps.checked += 1
            if (found := self.group_of(text)) is not None:
                group, window = found
                overlaps.found[group] = overlaps.found.get(group, 0) + 1
                if len(overlaps.examples) < 3:
                    overlaps.examples.append((place, group, window))
        return overlaps
