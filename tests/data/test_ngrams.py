"""Overlaps by n-grams: what was planted is found, and nothing else."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ngrams import NgramIndex, window_hashes, words_of

WORDS = [f"word{i}" for i in range(500)]


def text_of(rng: random.Random, length: int) -> list[str]:
    return rng.choices(WORDS, k=length)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
@settings(deadline=None)
def test_windows_are_equal_where_their_words_are(words: list[str], n: int) -> None:
    windows = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    hashes = window_hashes(words, n).tolist()
    assert len(hashes) == len(windows)
    for i, window in enumerate(windows):
        for j, other in enumerate(windows):
            assert (hashes[i] == hashes[j]) == (window == other)


@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 17))
@settings(deadline=None, max_examples=60)
def test_a_planted_window_is_found_and_a_shorter_one_is_not(seed: int, at: int, skip: int) -> None:
    rng = random.Random(seed)
    question = text_of(rng, 30)
    index = NgramIndex({"other": [" ".join(text_of(rng, 40))], "test": [" ".join(question)]})
    text = text_of(rng, 60)
    assert index.group_of(" ".join(text)) is None
    # Words of its own stand around what is planted: a neighbour could continue it by chance.
    planted = [*text[:at], "before", *question[skip : skip + 13], "after", *text[at:]]
    found = index.group_of(", ".join(planted).upper())
    assert found == ("test", " ".join(question[skip : skip + 13]))
    shorter = [*text[:at], "before", *question[skip : skip + 12], "after", *text[at:]]
    assert index.group_of(" ".join(shorter)) is None


def test_short_questions_are_compared_whole() -> None:
    index = NgramIndex({"test": ["How many legs?"]})
    assert index.group_of("how many LEGS") == ("test", "how many legs")
    assert index.group_of("I ask how many legs it has") is None


def test_overlaps_are_counted_with_examples() -> None:
    rng = random.Random(0)
    questions = [" ".join(text_of(rng, 20)) for _ in range(5)]
    index = NgramIndex({"gsm8k": questions})
    texts = [(f"file:{i}", " ".join(text_of(rng, 50))) for i in range(20)]
    texts += [(f"bad:{i}", f"before {question} after") for i, question in enumerate(questions)]
    overlaps = index.check(texts)
    assert overlaps.checked == 25 and overlaps.found == {"gsm8k": 5}
    assert overlaps.examples[0][0] == "bad:0" and len(overlaps.examples) == 3


def test_an_empty_index_finds_nothing() -> None:
    index = NgramIndex({})
    assert index.group_of("a b c") is None and index.group_of("") is None


def test_words_are_found_in_any_script() -> None:
    assert words_of("Zwölf, x² + 1; don't!") == ["zwölf", "x²", "1", "don't"]
    assert np.unique(window_hashes(words_of("a b a b a b"), 2)).size == 2
