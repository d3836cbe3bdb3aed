"""Thoughts in place of written steps, in the rows of a step."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus import RowArrays
from data.document import LossWeights, document_text, encode_document
from data.roles import Role
from data.split import problem_at
from data.tasks.task import Problem
from data.thoughts import Rule, Thinking, with_thoughts
from data.tokenizer import (
    ByteTokenizer,
    SymbolicTokenizer,
    Tokenizer,
    TokenizerConfig,
    tokenizer_from_config,
)

SYMBOLIC = SymbolicTokenizer()
DOT, PAD = SYMBOLIC.encode(".")[0], SYMBOLIC.pad_id
WEIGHTS = LossWeights(question=0.25, trace=0.5, answer=2.0)
NAMES = ("tokens", "targets", "segments", "roles", "loss", "begins")
CHAIN = Problem("mixed_chain", 3, "1 + 1 + 2 * 2", "1", ("2", "4", "1"), 2)


def rows_of(documents: list[tuple[Problem, str]], width: int = 100) -> RowArrays:
    """One row of these problems in these trace modes."""
    rows = RowArrays(
        *(np.full((1, width), value) for value in (PAD, PAD, -1, 0)),
        np.zeros((1, width), np.float32),
        np.zeros((1, width), np.bool_),
    )
    start = 0
    for number, (problem, trace) in enumerate(documents):
        made = encode_document(problem, trace, SYMBOLIC, WEIGHTS)
        place = slice(start, start + len(made))
        rows.segments[0, place] = number
        for name in ("tokens", "targets", "roles", "loss", "begins"):
            getattr(rows, name)[0, place] = getattr(made, name)
        start += len(made)
    return rows


def changed(rows: RowArrays, *rules: Rule, chosen: list[int] | None = None) -> RowArrays:
    most = int(rows.segments.max()) + 1
    picked = np.array([chosen or [0] * most])
    return with_thoughts(rows, rules, picked, DOT, PAD)


def written(rows: RowArrays, segment: int = 0) -> str:
    return SYMBOLIC.decode(rows.tokens[0, rows.segments[0] == segment].tolist())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(0, 2), "<think> . . 2 4 1 </think>"),
        (Rule(1, 1), "<think> . 4 1 </think>"),
        (Rule(2, 3), "<think> . . . 1 </think>"),
        (Rule(3, 1), "<think> . </think>"),
        (Rule(9, 1), "<think> . </think>"),
        (Rule(None, 0), "<think> </think>"),
        (Rule(2, 0), "<think> 1 </think>"),
    ],
)
def test_first_steps_give_way_to_thoughts(rule: Rule, expected: str) -> None:
    rows = changed(rows_of([(CHAIN, "full"), (CHAIN, "none")]), rule)
    question = "<mixed_chain> L3 <full> 1 + 1 + 2 * 2"
    assert written(rows) == f"{question} {expected} 1 <eos>"
    assert written(rows, 1) == document_text(CHAIN, "none"), "what has no trace stays"
    assert (rows.roles == Role.THOUGHT).sum() == rule.thoughts
    assert (rows.segments[0] >= 0).all(), "the row is as long as what it holds"


def test_what_is_predicted_and_how_much_it_weighs() -> None:
    rows = changed(rows_of([(CHAIN, "full")]), Rule(2, 3))
    think = SYMBOLIC.decode(rows.tokens[0].tolist()).split().index("<think>")
    targets = SYMBOLIC.decode(rows.targets[0, think : think + 6].tolist()).split()
    # Places before thoughts: the words that they stand for, without weight; then what follows.
    assert targets == ["2", "4", "4", "1", "</think>", "1"]
    assert rows.loss[0, think : think + 6].tolist() == [0, 0, 0, 0.5, 0.5, 2.0]
    assert rows.loss[0, :think].tolist() == [0.25] * think


def test_nothing_replaced_changes_nothing() -> None:
    rows = rows_of([(CHAIN, "full"), (CHAIN, "verbose"), (CHAIN, "none")])
    same = changed(rows, Rule())
    for name in NAMES:
        assert np.array_equal(getattr(same, name), getattr(rows, name)[:, : same.tokens.shape[1]])


@settings(max_examples=30, deadline=None)
@given(
    rules=st.lists(
        st.tuples(st.sampled_from([None, 0, 1, 2, 5]), st.integers(0, 4)), min_size=1, max_size=3
    ),
    seed=st.integers(0, 99),
)
def test_each_document_follows_its_rule_alone(
    rules: list[tuple[int | None, int]], seed: int
) -> None:
    """And weights stay what they were for whatever is still predicted."""
    problems = [problem_at("mixed_chain", 2 + seed % 3, "train", seed, i) for i in range(3)]
    documents = [(problem, "full" if i != 1 else "verbose") for i, problem in enumerate(problems)]
    made = [Rule(*rule) for rule in rules]
    chosen = np.random.default_rng(seed).integers(len(made), size=3)
    together = changed(rows_of(documents), *made, chosen=chosen.tolist())
    for number, document in enumerate(documents):
        alone = changed(rows_of([document]), made[chosen[number]])
        here = together.segments[0] == number
        for name in ("tokens", "targets", "roles", "loss", "begins"):
            assert np.array_equal(getattr(together, name)[0, here], getattr(alone, name)[0])
        tokens, targets = alone.tokens[0], alone.targets[0]
        weighed = alone.loss[0] > 0
        assert np.array_equal(targets[weighed], np.append(tokens[1:], PAD)[weighed])


def test_a_cut_document_is_left_as_it_is() -> None:
    rows = rows_of([(CHAIN, "full")])
    think = written(rows).split().index("<think>")
    for start, stop in ((0, think + 3), (think + 2, 99)):
        piece = rows_of([(CHAIN, "full")])
        outside = np.ones(piece.tokens.shape, bool)
        outside[:, start:stop] = False
        piece.segments[outside] = -1
        after = changed(piece, Rule(1, 2))
        assert not (after.roles == Role.THOUGHT).any()


def test_an_earlier_stages_rule_is_followed_by_its_share() -> None:
    thinking = Thinking(Rule(2, 2), (Rule(0, 0), Rule(1, 1)), share=0.3)
    chosen = thinking.choose("key", rows=200, most=10)
    shares = np.bincount(chosen.ravel(), minlength=3) / chosen.size
    assert shares == pytest.approx([0.15, 0.15, 0.7], abs=0.03)
    assert np.array_equal(chosen, thinking.choose("key", 200, 10)), "a function of its key"
    assert not np.array_equal(chosen, thinking.choose("other", 200, 10))
    assert np.array_equal(chosen[:7], thinking.choose("key", 7, 10)), "each row by itself"


@pytest.mark.parametrize("kind", ["symbolic", "bytes", "bpe"])
def test_steps_begin_where_they_are_written(kind: str) -> None:
    tokenizer: Tokenizer = tokenizer_from_config(TokenizerConfig(kind), ["mixed_chain"])
    made = encode_document(CHAIN, "verbose", tokenizer, WEIGHTS)
    starts = [*np.flatnonzero(made.begins).tolist(), len(made)]
    pieces = [tokenizer.decode(made.tokens[a:b].tolist()).strip() for a, b in pairwise(starts)]
    assert pieces == ["1 + 1 = 2", "2 + 2 = 4", "4 * 2 = 1", "</think> 1 <eos>"]


def test_steps_of_free_text_begin_where_they_are_written() -> None:
    """Also where the name of a special token stands in one, and where pieces merge."""
    steps = ("so <eos> is text", "then  two\n lines", "done")
    problem = Problem("own", 1, "why", "this", steps, 3, is_text=True)
    tokenizer = ByteTokenizer()
    made = encode_document(problem, "full", tokenizer, WEIGHTS)
    starts = [*np.flatnonzero(made.begins).tolist(), len(made)]
    pieces = [tokenizer.decode(made.tokens[a:b].tolist()) for a, b in pairwise(starts)]
    assert pieces == [*(f" {step}" for step in steps), " </think> this <eos>"]
