"""Tokenizers behind one interface: closed symbolic vocabulary, bytes, or a Hugging Face file.

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
from pathlib import Path
from typing import Any

from .task_list import find_task
from .vocabulary import END_THINK, EOS, PAD, SPECIALS, THINK, symbolic_vocabulary

# Stands for the ids that round a vocabulary up: an untrained model can produce them.
UNUSED = "<unused>"

KINDS = ("symbolic", "bytes", "huggingface")


@dataclass
class TokenizerConfig:
    """Which tokenizer a corpus uses.

    `path` is the tokenizer.json of kind huggingface. `tasks` are further tasks that a symbolic
    vocabulary has words for, beside those of the corpus: to be evaluated on, or trained on later.
    """

    kind: str = "symbolic"
    path: str | None = None
    tasks: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raises ValueError, naming the key, where the combination is impossible."""
        if self.kind not in KINDS:
            raise ValueError(
                f"tokenizer.kind={self.kind} is unknown: use one of {', '.join(KINDS)}"
            )
        if self.kind == "huggingface" and not self.path:
            raise ValueError(
                "tokenizer.kind=huggingface needs tokenizer.path=FILE (a tokenizer.json)"
            )
        if self.kind != "huggingface" and self.path:
            raise ValueError(
                f"tokenizer.path is only for kind huggingface, not {self.kind}: drop it"
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

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text; pieces of a document are encoded one by one and joined."""

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
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

    def encode_plain(self, text: str) -> list[int]:
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

    def encode_plain(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode())

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


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, given as its text, with the special tokens added."""

    # A tokenizer that can't give this back (one that lower-cases, say) can't carry the tasks.
    PROBE = "L12 e7 A#E = 3 * x5 ; a > B ? 0 1"

    def __init__(self, definition: str) -> None:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Fast

        self.fast = Fast.from_str(definition)
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fast.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
        vocabulary = self.fast.get_vocab(with_added_tokens=True)
        self.vocab_size = rounded_up(max(vocabulary.values()) + 1)
        self.set_specials(vocabulary)
        if self.decode(self.encode(self.PROBE)).split() != self.PROBE.split():
            raise ValueError(
                "this Hugging Face tokenizer doesn't give the text of a task back (it may"
                " lower-case or drop symbols): use another tokenizer.json or tokenizer.kind=bytes"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> "HuggingFaceTokenizer":
        """Read a tokenizer.json; ValueError names the file where it can't be read."""
        try:
            definition = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"tokenizer.path={path} can't be read: {error}") from None
        try:
            return cls(definition)
        except ValueError:
            raise
        except Exception as error:  # the package raises the bare class
            raise ValueError(f"tokenizer.path={path} is not a tokenizer.json: {error}") from None

    def encode(self, text: str) -> list[int]:
        """The ids, without what a template would add around them."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """The ids, special tokens' names written out."""
        self.fast.encode_special_tokens = True
        try:
            return self.fast.encode(text, add_special_tokens=False).ids
        finally:
            self.fast.encode_special_tokens = False

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        self.check_ids(ids)
        return self.fast.decode(list(ids), skip_special_tokens=False)

    def spec(self) -> dict[str, Any]:
        """The whole definition."""
        return {"kind": "huggingface", "definition": self.fast.to_str()}


def rounded_up(size: int) -> int:
    """The next multiple of 64."""
    return -(-size // 64) * 64


def tokenizer_from_config(config: TokenizerConfig, tasks: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that a corpus of these tasks asks for."""
    config.validate()
    if config.kind == "symbolic":
        return SymbolicTokenizer(symbolic_vocabulary([*tasks, *config.tasks]))
    if config.kind == "bytes":
        return ByteTokenizer()
    return HuggingFaceTokenizer.from_file(str(config.path))


def tokenizer_from_spec(spec: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `spec` came from."""
    kind = spec.get("kind")
    if kind == "symbolic":
        return SymbolicTokenizer(spec["tokens"])
    if kind == "bytes":
        return ByteTokenizer(spec["specials"])
    if kind == "huggingface":
        return HuggingFaceTokenizer(spec["definition"])
    raise ValueError(f"tokenizer kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
