"""Published tokenizers say what ours say: every document, every id, every special token."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast

from data.bpe import trained_bpe
from data.document import encode_pieces, fragments
from data.huggingface_tokenizer import HuggingFaceTokenizer
from data.portable_tokenizer import portable_files
from data.split import evaluation_problems
from data.task_list import TASKS
from data.tokenizer import ByteTokenizer, SymbolicTokenizer, Tokenizer

BPE = trained_bpe(["s3 swaps a b c 12 34 <think>", "the cat sat on the mat"] * 3, 600, ["s3"])
TOKENIZERS: dict[str, Tokenizer] = {
    "symbolic": SymbolicTokenizer(),
    "bytes": ByteTokenizer(),
    "huggingface": HuggingFaceTokenizer(BPE.to_str()),
}
PORTABLE = {
    kind: Fast.from_str(portable_files(tokenizer, 64)["tokenizer.json"])
    for kind, tokenizer in TOKENIZERS.items()
}


@pytest.mark.parametrize("task", ["s3_swaps", "prosqa", "igsm", "parity"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_documents_are_encoded_alike(kind: str, task: str) -> None:
    ours, theirs = TOKENIZERS[kind], PORTABLE[kind]
    level = TASKS[task].levels[0]
    for problem in evaluation_problems(task, level, "validation", 0, 3):
        for trace in ("none", "full"):
            tokens, roles = encode_pieces(problem, trace, ours)
            pieces = fragments(problem, trace)
            prompt = "".join(p.text for p in pieces if p.role == 1)
            assert theirs.encode(prompt).ids == tokens[roles == 1].tolist()
            document = "".join(p.text for p in pieces)
            assert theirs.encode(document).ids == ours.encode(document)
            ids = tokens.tolist()
            assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_id_is_written_alike(kind: str) -> None:
    ours, theirs = TOKENIZERS[kind], PORTABLE[kind]
    drawn = np.random.default_rng(0).integers(0, ours.vocab_size, (200, 12)).tolist()
    for ids in [*drawn, list(range(ours.vocab_size))]:
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    assert theirs.token_to_id("<think>") == ours.think_id
    assert theirs.token_to_id("<eos>") == ours.eos_id


@pytest.mark.parametrize("kind", ["bytes", "huggingface"])
@given(text=st.text(max_size=30).map(lambda text: f"{text}<think> {text}\n"))
def test_any_text_is_encoded_alike(kind: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert PORTABLE[kind].encode(text).ids == TOKENIZERS[kind].encode(text)


def test_unknown_words_are_refused_as_ours_are() -> None:
    with pytest.raises(Exception, match="UNK"):
        PORTABLE["symbolic"].encode("no-such-symbol")


def test_a_template_of_a_borrowed_tokenizer_is_left_out() -> None:
    definition = json.loads(BPE.to_str())
    pieces = [
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    ours = HuggingFaceTokenizer(json.dumps(definition))
    theirs = Fast.from_str(portable_files(ours, 64)["tokenizer.json"])
    assert theirs.encode("a b").ids == ours.encode("a b")


def test_transformers_loads_every_kind(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for kind, tokenizer in TOKENIZERS.items():
        folder = tmp_path / kind
        folder.mkdir()
        for name, text in portable_files(tokenizer, 64).items():
            (folder / name).write_text(text)
        (folder / "config.json").write_text('{"model_type": "pauca"}')
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        text = "<s3> L2 <full> a b <think> a </think> b <eos>"
        assert loaded(text).input_ids == tokenizer.encode(text)
        assert loaded.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_id, tokenizer.eos_id)
        batch = loaded(["a b", "a"], padding=True)
        assert batch.attention_mask[1][0] == 0, "padding stands on the left"
        assert "token_type_ids" not in batch
