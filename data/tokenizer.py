"""Tokenizers behind one interface: closed symbolic vocabulary, bytes, BPE, or a Hugging Face file.

All know the special tokens below; a tokenizer can be rebuilt from its `spec()`, which corpora and
checkpoints carry, so that they stay readable when tasks are added.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .bpe import trained_bpe
from .task_list import find_task
from .vocabulary import END_THINK, EOS, PAD, SPECIALS, THINK, symbolic_vocabulary

# Stands for the ids that round a vocabulary up: an untrained model can produce them.
UNUSED = "<unused>"

LARGEST_BPE, SMALLEST_BPE = 1 << 16, 512
KINDS = ("symbolic", "bytes", "bpe", "huggingface")


@dataclass
class TokenizerConfig:
    """Which tokenizer a corpus uses.

    `path` is, for kind huggingface, a tokenizer.json, a folder that holds one, or a name of the hub
    (`owner/name`, at `revision`). `vocab_size` is the most tokens of kind bpe, which is trained on
    the corpus itself. `tasks` are further tasks that a symbolic
    vocabulary has words for, beside those of the corpus: to be evaluated on, or trained on later.
    """

    kind: str = "symbolic"
    path: str | None = None
    revision: str | None = None
    vocab_size: int = 4096
    tasks: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raises ValueError, naming the key, where the combination is impossible."""
        if self.kind not in KINDS:
            raise ValueError(
                f"tokenizer.kind={self.kind} is unknown: use one of {', '.join(KINDS)}"
            )
        if self.kind == "huggingface" and not self.path:
            raise ValueError(
                "tokenizer.kind=huggingface needs tokenizer.path=FILE (a tokenizer.json), a folder"
                " that holds one, or owner/name of the hub"
            )
        if self.kind != "huggingface" and self.path:
            raise ValueError(
                f"tokenizer.path is only for kind huggingface, not {self.kind}: drop it"
            )
        if self.revision and self.kind != "huggingface":
            raise ValueError(
                f"tokenizer.revision={self.revision} is only for kind huggingface: drop it"
            )
        if self.kind == "bpe" and not SMALLEST_BPE <= self.vocab_size <= LARGEST_BPE:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} is not possible: use {SMALLEST_BPE} to"
                f" {LARGEST_BPE}"
            )
        if self.kind != "symbolic" and self.tasks:
            raise ValueError(
                f"tokenizer.tasks={self.tasks} is only for kind symbolic, not {self.kind}: drop it"
            )
        for task in self.tasks:
            try:
                find_task(task)
            except ValueError as error:
                raise ValueError(f"tokenizer.tasks={self.tasks}: {error}") from None


class Tokenizer(ABC):
    """Text to ids and back. `vocab_size` is a multiple of 64, for the speed of matrix products."""

    pad_id: int
    eos_id: int
    think_id: int
    end_think_id: int
    vocab_size: int

    @property
    def keeps_text(self) -> bool:
        """Whether free text comes back exactly."""
        return True

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text; pieces of a document are encoded one by one and joined."""

    @abstractmethod
    def encode_plain(self, text: str) -> np.ndarray:
        """The ids of a text from outside, in which the name of a special token is just text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids from 0 to vocab_size - 1; any sequence of them is accepted."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What rebuilds it (see `tokenizer_from_spec`), as JSON values."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the spec, in hex."""
        canonical = json.dumps(self.spec(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def set_specials(self, ids: dict[str, int]) -> None:
        """Take over the ids of the special tokens."""
        self.pad_id, self.eos_id = ids[PAD], ids[EOS]
        self.think_id, self.end_think_id = ids[THINK], ids[END_THINK]

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raises ValueError for an id outside the vocabulary."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")


class SymbolicTokenizer(Tokenizer):
    """One token per symbol, symbols between whitespace, from a closed vocabulary."""

    def __init__(self, tokens: Sequence[str] | None = None) -> None:
        """The vocabulary of all own tasks, or the given one (of a corpus)."""
        self.tokens = tuple(symbolic_vocabulary() if tokens is None else tokens)
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if missing := [token for token in SPECIALS if token not in self.ids]:
            raise ValueError(f"a symbolic vocabulary needs the special tokens {' '.join(missing)}")
        self.vocab_size = rounded_up(len(self.tokens))
        self.set_specials(self.ids)

    def encode(self, text: str) -> list[int]:
        """One id a symbol; ValueError names a symbol that the vocabulary lacks."""
        try:
            return [self.ids[symbol] for symbol in text.split()]
        except KeyError as error:
            raise ValueError(
                f"symbol {error.args[0]!r} is not in the symbolic vocabulary of {len(self.tokens)}"
                " tokens: separate symbols by spaces, or use tokenizer.kind=bytes"
            ) from None

    def encode_plain(self, text: str) -> np.ndarray:
        """Refused: a closed vocabulary has no words for text."""
        raise ValueError(
            "a symbolic vocabulary can't write free text: use tokenizer.kind=bytes, bpe or"
            " huggingface"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The symbols between single spaces."""
        self.check_ids(ids)
        return " ".join(self.tokens[i] if i < len(self.tokens) else UNUSED for i in ids)

    def spec(self) -> dict[str, Any]:
        """The vocabulary itself."""
        return {"kind": "symbolic", "tokens": list(self.tokens)}


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes 0 to 255, then the special tokens; text comes back byte for byte."""

    def __init__(self, specials: Sequence[str] = SPECIALS) -> None:
        self.specials = tuple(specials)
        self.ids = {token: 256 + index for index, token in enumerate(self.specials)}
        self.vocab_size = rounded_up(256 + len(self.specials))
        self.pattern = re.compile(f"({'|'.join(map(re.escape, self.specials))})")
        self.set_specials(self.ids)

    def encode(self, text: str) -> list[int]:
        """Special tokens as one id each, everything between them as its bytes."""
        ids: list[int] = []
        for piece in self.pattern.split(text):
            ids.extend([self.ids[piece]] if piece in self.ids else piece.encode())
        return ids

    def encode_plain(self, text: str) -> np.ndarray:
        """The bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become the replacement character."""
        self.check_ids(ids)
        pieces = [bytes([i]) if i < 256 else self.name(i).encode() for i in ids]
        return b"".join(pieces).decode(errors="replace")

    def name(self, token: int) -> str:
        """What an id above the bytes is written as."""
        return self.specials[token - 256] if token - 256 < len(self.specials) else UNUSED

    def spec(self) -> dict[str, Any]:
        """The special tokens, in the order of their ids."""
        return {"kind": "bytes", "specials": list(self.specials)}


def rounded_up(size: int) -> int:
    """The next multiple of 64."""
    return -(-size // 64) * 64


def tokenizer_from_config(config: TokenizerConfig, tasks: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that a corpus of these tasks asks for; one of kind bpe is still untrained."""
    config.validate()
    if config.kind == "symbolic":
        return SymbolicTokenizer(symbolic_vocabulary([*tasks, *config.tasks]))
    if config.kind == "bytes":
        return ByteTokenizer()
    from .huggingface_tokenizer import HuggingFaceTokenizer, tokenizer_from_path

    if config.kind == "bpe":
        return HuggingFaceTokenizer(trained_bpe([], config.vocab_size, sorted(tasks)).to_str())
    return tokenizer_from_path(str(config.path), config.revision)


def tokenizer_from_spec(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `spec` came from."""
    kind = spec.get("kind")
    if kind == "symbolic":
        return SymbolicTokenizer(spec["tokens"])
    if kind == "bytes":
        return ByteTokenizer(spec["specials"])
    if kind == "huggingface":
        from .huggingface_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(spec["definition"])
    raise ValueError(f"tokenizer kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
