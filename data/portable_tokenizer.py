"""Any tokenizer of ours as a tokenizer.json, which loads everywhere without our code."""

import json
from typing import Any

from .tokenizer import UNUSED, ByteTokenizer, SymbolicTokenizer, Tokenizer
from .vocabulary import EOS, PAD, SPECIALS

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


def portable_files(tokenizer: Tokenizer, context: int) -> dict[str, str]:
    """Return the files that `AutoTokenizer.from_pretrained` reads, by name.

    They encode and decode as the tokenizer does; where it refuses a text, so do they.

    Args:
        tokenizer: of any kind.
        context: tokens of a row in training, which they say is the longest text.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "pad_token": PAD,
    }
    return {
        FILE: _definition(tokenizer),
        CONFIG_FILE: json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }


def _definition(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, SymbolicTokenizer):
        return _symbolic(tokenizer).to_str(pretty=True)
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes(tokenizer).to_str(pretty=True)
    # What a template adds around a text is never in a corpus, so it must not be added here.
    definition: dict[str, Any] = json.loads(tokenizer.spec()["definition"])
    return json.dumps({**definition, "post_processor": None}, ensure_ascii=False, indent=2)


def _symbolic(tokenizer: SymbolicTokenizer) -> Any:
    """Words between whitespace; a word that is in no vocabulary is an error, as it is for us."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    places = range(len(tokenizer.tokens), tokenizer.vocab_size)
    words = {**tokenizer.ids, **{_unused(place): place for place in places}}
    fast = Fast(models.WordLevel(words))  # type: ignore[call-arg]
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast.decoder = decoders.Sequence([_named_alike(), *_between_spaces()])
    _add_specials(fast, SPECIALS)
    return fast


def _bytes(tokenizer: ByteTokenizer) -> Any:
    """Bytes in their order, each written as the letter that byte-level tokenizers have for it."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    words = {letter: byte for byte, letter in enumerate(_byte_letters())} | tokenizer.ids
    for place in range(256 + len(tokenizer.specials), tokenizer.vocab_size):
        words[_unused(place)] = place
    fast = Fast(models.BPE(vocab=words, merges=[]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = byte_level  # type: ignore[assignment]
    fast.decoder = decoders.Sequence([_named_alike(), decoders.ByteLevel()])
    _add_specials(fast, tokenizer.specials)
    return fast


def _named_alike() -> Any:
    """Write the ids that round a vocabulary up as we do: all alike."""
    from tokenizers import Regex, decoders

    return decoders.Replace(Regex(r"<unused\d+>"), UNUSED)


def _between_spaces() -> list[Any]:
    """Write words with one space between."""
    from tokenizers import Regex, decoders

    return [decoders.Replace(Regex("^"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def _unused(place: int) -> str:
    return f"<unused{place}>"


def _add_specials(fast: Any, names: Any) -> None:
    from tokenizers import AddedToken

    fast.add_special_tokens([AddedToken(name, normalized=False) for name in names])


def _byte_letters() -> list[str]:
    """The letter of each byte (GPT-2's table): itself where it is seen, else one from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]
