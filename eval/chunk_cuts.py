"""Where a backbone cuts held-out documents into chunks, and before which kinds of bytes.

Legend: B batch, T time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.corpus import Corpus
from data.tokenizer import ByteTokenizer
from models.backbone import Backbone

SPLIT = "validation"
ROWS_AT_ONCE = 16
SPACE = 32


@dataclass(frozen=True)
class Cut:
    """One document.

    Attributes:
        source: name of the source that it is from.
        tokens: its bytes and special tokens.
        levels: levels at which each of them begins a chunk.
    """

    source: str
    tokens: list[int]
    levels: list[int]


@torch.inference_mode()
def cut_documents(backbone: Backbone, corpus: Corpus, rows: int, device: str) -> list[Cut]:
    """Read some held-out rows, evenly over the split; return their documents.

    Args:
        backbone: one that chunks, on the device.
        corpus: the one that it was trained on.
        rows: how many rows.
        device: where it is.
    """
    split, names = corpus.split(SPLIT), corpus.source_names
    chosen = np.unique(np.linspace(0, split.num_rows - 1, rows).round().astype(np.int64))
    found = []
    for first in range(0, chosen.size, ROWS_AT_ONCE):
        arrays = split.read(chosen[first : first + ROWS_AT_ONCE])
        given = (torch.from_numpy(x).to(device) for x in (arrays.tokens, arrays.segments))
        levels_BT = backbone(*given).trajectory.chunks_BT
        assert levels_BT is not None, "nothing is chunked"
        levels = levels_BT.cpu().numpy()
        for row in range(len(arrays.tokens)):
            for number, entry in enumerate(arrays.documents(row)):
                own = arrays.segments[row] == number
                tokens, cuts = arrays.tokens[row][own].tolist(), levels[row][own].tolist()
                found.append(Cut(names[int(entry["source"])], tokens, cuts))
    return found


def some_of_each(cuts: Sequence[Cut], count: int) -> list[Cut]:
    """Choose documents, as evenly over sources as there are."""
    by_source: dict[str, list[Cut]] = {}
    for cut in cuts:
        by_source.setdefault(cut.source, []).append(cut)
    turns = [cut for own in by_source.values() for cut in enumerate(own)]
    return [cut for _, cut in sorted(turns, key=lambda turn: turn[0])[:count]]


Kind = Callable[[int, int], bool]
"""`(token, the one before it) -> bool`."""

KINDS: dict[str, Kind] = {
    "space": lambda now, _: now == SPACE,
    "digit": lambda now, _: now < 256 and chr(now) in "0123456789",
    "letter": lambda now, _: now < 128 and chr(now).isalpha(),
    "other byte": lambda now, _: now < 256 and not (chr(now).isalnum() and now < 128) and now != 32,
    "special token": lambda now, _: now >= 256,
    "first after a space": lambda now, before: before == SPACE and now != SPACE,
}
"""Kinds of bytes; the last one crosses the others."""


@dataclass(frozen=True)
class Rate:
    """How often chunks begin at bytes of one kind.

    Attributes:
        kind: its name.
        bytes: how many there are, the first of each document left out: it always begins one.
        begins: how many of them begin a chunk.
    """

    kind: str
    bytes: int
    begins: int


def rates(cuts: Sequence[Cut], level: int = 1) -> list[Rate]:
    """Count boundaries of a level by the kind of the byte that they stand before."""
    pairs = [
        (now, before, cut >= level)
        for document in cuts
        for now, before, cut in zip(
            document.tokens[1:], document.tokens[:-1], document.levels[1:], strict=True
        )
    ]
    found = []
    for name, is_kind in {"any": lambda *_: True, **KINDS}.items():
        own = [begins for now, before, begins in pairs if is_kind(now, before)]
        found.append(Rate(name, len(own), sum(own)))
    return found


def mean_length(cuts: Sequence[Cut], level: int = 1) -> float:
    """Bytes of a chunk, on the mean."""
    chunks = sum(number >= level for cut in cuts for number in cut.levels)
    return sum(len(cut.tokens) for cut in cuts) / max(1, chunks)


def pieces(cut: Cut, tokenizer: ByteTokenizer) -> list[tuple[str, int]]:
    """The chunks of a document as text, each with the level that it begins.

    A character whose bytes fall into two chunks becomes the replacement character.
    """
    starts = [place for place, level in enumerate(cut.levels) if level]
    ends = [*starts[1:], len(cut.tokens)]
    return [
        (tokenizer.decode(cut.tokens[start:end]), cut.levels[start])
        for start, end in zip(starts, ends, strict=True)
    ]
