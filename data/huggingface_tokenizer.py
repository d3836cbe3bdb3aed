"""Any tokenizer.json: of a file, of a folder, or of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tokenizer import Tokenizer, rounded_up
from .vocabulary import SPECIALS

FILE = "tokenizer.json"
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json, given as its text, with the special tokens added."""

    # A tokenizer that can't give this back (one that lower-cases, say) can't carry the tasks.
    PROBE = "L12 e7 A#E = 3 * x5 ; a > B ? 0 1"
    # Nor can one that can't give this back, sign by sign, carry free text.
    TEXT_PROBE = "Zwölf – 日本\n\n  def f(x):\n\treturn x²  # <think>\n"

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

    @property
    def keeps_text(self) -> bool:
        """Whether free text comes back exactly."""
        return self.decode(self.encode_plain(self.TEXT_PROBE).tolist()) == self.TEXT_PROBE

    def encode(self, text: str) -> list[int]:
        """The ids, without what a template would add around them."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> np.ndarray:
        """The ids, special tokens' names written out."""
        self.fast.encode_special_tokens = True
        try:
            ids = self.fast.encode(text, add_special_tokens=False).ids
        finally:
            self.fast.encode_special_tokens = False
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        self.check_ids(ids)
        return self.fast.decode(list(ids), skip_special_tokens=False)

    def spec(self) -> dict[str, Any]:
        """The whole definition."""
        return {"kind": "huggingface", "definition": self.fast.to_str()}


def tokenizer_from_path(path: str, revision: str | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a file, of a folder with a tokenizer.json, or of `owner/name` on the hub.

    Raises:
        ValueError: it can't be read or fetched, or isn't a tokenizer; one line that names it.
    """
    file = _local(path, revision)
    try:
        definition = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tokenizer.path={path} can't be read: {error}") from None
    try:
        return HuggingFaceTokenizer(definition)
    except ValueError:
        raise
    except Exception as error:  # the package raises the bare class
        raise ValueError(f"tokenizer.path={path} is not a tokenizer.json: {error}") from None


def _local(path: str, revision: str | None) -> Path:
    """The file itself; what lies here goes before what has the same name on the hub."""
    here = Path(path)
    if here.is_dir():
        return here / FILE
    if here.exists() or not _HUB.fullmatch(path):
        return here
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, FILE, revision=revision))
    except Exception as error:  # offline, no such repository, no such file
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"tokenizer.path={path} is no file here and can't be fetched from the hub ({reason});"
            f" name a folder that holds its {FILE}"
        ) from None
