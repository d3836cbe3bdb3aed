"""What chunking remembers between calls.

Legend: B batch, D width.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from ..state import State


@dataclass
class LevelMemory(State):
    """Of one level: its blocks' memories, and what the next position compares itself with.

    Attributes:
        encoder: memories of the encoder's blocks.
        decoder: memories of the decoder's blocks.
        output_BD: the encoder's last output.
        chunk_BD: the last chunk, smoothed, at least float32; a position in which none begins
            reads it again.
        last_B: the last token.
    """

    encoder: list[Any]
    decoder: list[Any]
    output_BD: Tensor
    chunk_BD: Tensor
    last_B: Tensor

    def take(self, rows: Tensor) -> Self:
        """Return a copy with these rows, in this order."""
        encoder, decoder = (
            [state.take(rows) for state in states] for states in (self.encoder, self.decoder)
        )
        return replace(super().take(rows), encoder=encoder, decoder=decoder)

    def put(self, rows: Tensor, other: State) -> None:
        """Overwrite these rows, in place."""
        assert isinstance(other, LevelMemory)
        super().put(rows, other)
        theirs = (*other.encoder, *other.decoder)
        for mine, their in zip((*self.encoder, *self.decoder), theirs, strict=True):
            mine.put(rows, their)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        super().forget(rows)
        for state in (*self.encoder, *self.decoder):
            state.forget(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks' memories and of two vectors; the last token is a counter."""
        held = (self.output_BD, self.chunk_BD)
        blocks = sum(state.nbytes for state in (*self.encoder, *self.decoder))
        return blocks + sum(x.numel() * x.element_size() for x in held)


@dataclass
class ChunkMemory:
    """Of all levels, the outer one first.

    Attributes:
        levels: each level's.
    """

    levels: list[LevelMemory]

    def take(self, rows: Tensor) -> "ChunkMemory":
        """Return a copy with these rows, in this order."""
        return ChunkMemory([level.take(rows) for level in self.levels])

    def put(self, rows: Tensor, other: "ChunkMemory") -> None:
        """Overwrite these rows, in place."""
        for mine, theirs in zip(self.levels, other.levels, strict=True):
            mine.put(rows, theirs)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        for level in self.levels:
            level.forget(rows)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(level.nbytes for level in self.levels)
