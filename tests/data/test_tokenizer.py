"""One interface, three tokenizers; each is rebuilt from its spec."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.bpe import trained_bpe
from data.huggingface_tokenizer import HuggingFaceTokenizer
from data.task_list import TASKS
from data.tokenizer import (
    ByteTokenizer,
    SymbolicTokenizer,
    Tokenizer,
    TokenizerConfig,
    tokenizer_from_config,
    tokenizer_from_spec,
)
from data.vocabulary import (
    FIRST_TASKS,
    LARGEST_SYMBOLIC,
    SPECIALS,
    first_vocabulary,
    symbolic_vocabulary,
    task_token,
)

DOCUMENT = "<phop> L8 <full> a b a c <think> b c </think> c <eos>"


def byte_bpe(lower_case: bool = False) -> str:
    """A tiny byte-level BPE, as the text of its tokenizer.json."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    if lower_case:
        fast.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(["e1 e2 e3 a b c"] * 20, trainer)
    return fast.to_str()


TOKENIZERS: dict[str, Tokenizer] = {
    "symbolic": SymbolicTokenizer(),
    "bytes": ByteTokenizer(),
    "huggingface": HuggingFaceTokenizer(byte_bpe()),
    "bpe": HuggingFaceTokenizer(
        trained_bpe(["the cat sat", "12 cats"] * 9, 320, ["phop"]).to_str()
    ),
}
EACH = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@EACH
def test_documents_come_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(DOCUMENT)
    assert tokenizer.decode(ids) == DOCUMENT
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.think_id) == ids.count(tokenizer.end_think_id) == 1
    assert tokenizer.pad_id not in ids


@EACH
def test_each_special_is_one_token_and_its_own(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(special) for special in SPECIALS]
    assert len({token for (token,) in ids}) == len(SPECIALS)
    specials = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.think_id, tokenizer.end_think_id)
    assert len(set(specials)) == 4


@EACH
def test_any_ids_decode(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size % 64 == 0
    for token in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([token]), str)
    assert tokenizer.decode([]) == "" and tokenizer.encode("") == []
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"token {outside} is outside"):
            tokenizer.decode([outside])


@EACH
def test_the_spec_rebuilds_it(tokenizer: Tokenizer) -> None:
    spec = json.loads(json.dumps(tokenizer.spec()))
    again = tokenizer_from_spec(spec)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(DOCUMENT) == tokenizer.encode(DOCUMENT)
    assert again.vocab_size == tokenizer.vocab_size


def test_fingerprints_tell_tokenizers_apart() -> None:
    fewer = SymbolicTokenizer(SymbolicTokenizer().tokens[:-1])
    fingerprints = {tokenizer.fingerprint for tokenizer in (*TOKENIZERS.values(), fewer)}
    assert len(fingerprints) == 5 and all(len(each) == 64 for each in fingerprints)


def test_an_older_vocabulary_still_reads_its_corpus() -> None:
    older = SymbolicTokenizer([*SPECIALS, "<phop>", "L8", "c", "b", "a"])
    assert older.decode(older.encode(DOCUMENT)) == DOCUMENT
    assert older.encode("a") != SymbolicTokenizer().encode("a")


def test_the_first_vocabulary_never_changes() -> None:
    """The ids of published corpora and checkpoints rest on it."""
    tokens = first_vocabulary()
    assert tuple(tokens[: len(SPECIALS)]) == SPECIALS
    assert tokens[len(SPECIALS) :] == sorted(set(tokens) - set(SPECIALS))
    assert SymbolicTokenizer(tokens).fingerprint[:16] == "84824521d864acd7"


def test_a_newer_task_appends_its_words() -> None:
    first, tokens = first_vocabulary(), list(SymbolicTokenizer().tokens)
    assert tokens[: len(first)] == first and len(tokens) == len(set(tokens)) <= LARGEST_SYMBOLIC
    newer = [task for task in TASKS if task not in FIRST_TASKS]
    for task in newer:
        own = symbolic_vocabulary([task])
        assert own[: len(first)] == first
        assert {task_token(task), *TASKS[task].symbols()} <= set(own) <= set(tokens)
    assert symbolic_vocabulary(["parity"]) == symbolic_vocabulary([]) == first
    assert symbolic_vocabulary(newer[::-1]) == tokens


def test_the_symbolic_vocabulary_holds_what_tasks_share() -> None:
    tokens = SymbolicTokenizer().tokens
    assert {*"0123456789", "L0", "L64", "e119", "x39", "+", "="} <= set(tokens)


def test_an_unknown_symbol_is_named() -> None:
    with pytest.raises(ValueError, match=r"symbol '42' is not in the symbolic vocabulary"):
        SymbolicTokenizer().encode("4 2 42")
    with pytest.raises(ValueError, match="<think>"):
        SymbolicTokenizer(["<pad>", "a"])


@given(st.text(max_size=60))
@settings(deadline=None)
def test_bytes_come_back_exactly(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(max_size=20), st.sampled_from(SPECIALS), st.text(max_size=20))
@settings(deadline=None)
def test_specials_inside_text_are_one_token(before: str, special: str, after: str) -> None:
    tokenizer = ByteTokenizer()
    joined = tokenizer.encode(before) + tokenizer.encode(special) + tokenizer.encode(after)
    assert tokenizer.encode(before + special + after) == joined


def test_a_hugging_face_file(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(byte_bpe())
    tokenizer = tokenizer_from_config(TokenizerConfig("huggingface", str(file)))
    assert tokenizer.fingerprint == TOKENIZERS["huggingface"].fingerprint


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    with pytest.raises(ValueError, match="doesn't give the text of a task back"):
        HuggingFaceTokenizer(byte_bpe(lower_case=True))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{}")
    for name in ("absent.json", "broken.json"):
        with pytest.raises(ValueError, match=rf"tokenizer.path=.*{name}"):
            tokenizer_from_config(TokenizerConfig("huggingface", str(tmp_path / name)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TokenizerConfig("words"), "tokenizer.kind=words .* symbolic, bytes, bpe, huggingface"),
        (TokenizerConfig("huggingface"), "needs tokenizer.path=FILE"),
        (TokenizerConfig("bytes", "x.json"), "tokenizer.path is only for kind huggingface"),
    ],
)
def test_impossible_configs_are_refused(config: TokenizerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_from_config(config)


def test_an_unknown_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer kind 'words' is unknown"):
        tokenizer_from_spec({"kind": "words"})


def test_a_trained_bpe_merges_words_and_never_digits() -> None:
    tokenizer = TOKENIZERS["bpe"]
    assert len(tokenizer.encode("the cat sat")) < 8
    assert len(tokenizer.encode("12121212")) == 8
    assert len(tokenizer.encode("<phop>")) == 1 and len(tokenizer.encode("<mqar>")) > 1


@given(st.text(max_size=60))
@settings(deadline=None)
def test_text_comes_back_from_a_bpe(text: str) -> None:
    for name in ("bytes", "bpe"):
        tokenizer = TOKENIZERS[name]
        assert tokenizer.decode(tokenizer.encode_plain(text).tolist()) == text


@pytest.mark.parametrize("name", ["bytes", "bpe", "huggingface"])
def test_a_special_tokens_name_in_a_text_stays_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode_plain("a <eos> b <think>").tolist()
    assert tokenizer.eos_id not in ids and tokenizer.think_id not in ids
    assert tokenizer.decode(ids) == "a <eos> b <think>"
    assert tokenizer.eos_id in tokenizer.encode("a <eos> b")


def test_a_symbolic_vocabulary_writes_no_text() -> None:
    with pytest.raises(ValueError, match=r"can't write free text: use tokenizer.kind=bytes"):
        TOKENIZERS["symbolic"].encode_plain("once upon a time")


def test_a_folder_or_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_bpe())
    found = tokenizer_from_config(TokenizerConfig("huggingface", str(tmp_path)))
    assert found.fingerprint == TOKENIZERS["huggingface"].fingerprint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"path=no/such is no file here and can't be fetched "):
        tokenizer_from_config(TokenizerConfig("huggingface", "no/such"))


BPE = """
from data.bpe import trained_bpe
import hashlib, random
random.seed(0)
words = ["".join(random.choices("abcde", k=random.randrange(2, 6))) for _ in range(300)]
texts = [" ".join(random.choices(words, k=20)) for _ in range(500)]
print(hashlib.sha256(trained_bpe(texts, 700).to_str().encode()).hexdigest())
"""


@pytest.mark.multiprocess
def test_a_bpe_is_the_same_with_any_number_of_threads() -> None:
    digests = set()
    for threads in ("1", "2", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(
            [sys.executable, "-c", BPE],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1
