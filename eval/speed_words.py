"""A text of random words, for measurements to which only its size matters."""

from pathlib import Path

import numpy as np

BYTES_A_WORD = 6
"""On the mean, with the space after it."""
_VOCABULARY = 2_000


def write_words(path: Path, documents: int, size: int) -> None:
    """Write documents of about `size` bytes, one a line; the same ones each time."""
    rng = np.random.default_rng(0)
    words = [_word(rng) for _ in range(_VOCABULARY)]
    with path.open("w") as file:
        for _ in range(documents):
            chosen = rng.integers(0, _VOCABULARY, size // BYTES_A_WORD)
            file.write(" ".join(words[place] for place in chosen) + "\n")


def _word(rng: np.random.Generator) -> str:
    return "".join(map(chr, rng.integers(97, 123, rng.integers(2, 9))))
