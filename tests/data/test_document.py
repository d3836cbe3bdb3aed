"""Layout, roles, targets and loss weights of a document; no label teaches a held-out problem."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.document import (
    LossWeights,
    document_text,
    encode_document,
    held_out_prefixes,
    prompt_text,
)
from data.roles import Role
from data.split import evaluation_problems, problem_at, split_of, splittable
from data.task_list import TASKS
from data.tasks.task import TRACES, Problem
from data.tokenizer import ByteTokenizer, SymbolicTokenizer

SYMBOLIC = SymbolicTokenizer()
WEIGHTS = LossWeights(question=0.25, trace=0.5, answer=2.0, label=0.75)
PROBLEM = Problem("parity", 3, "1 1 0", "0", ("1", "0", "0"), 2, labels=("1", "0", "0"))


def test_the_layout() -> None:
    assert prompt_text(PROBLEM, "none") == "<parity> L3 <none> 1 1 0"
    assert document_text(PROBLEM, "none") == "<parity> L3 <none> 1 1 0 0 <eos>"
    assert prompt_text(PROBLEM, "full") == "<parity> L3 <full> 1 1 0 <think>"
    assert document_text(PROBLEM, "short") == (
        "<parity> L3 <short> 1 1 0 <think> 1 0 </think> 0 <eos>"
    )
    with pytest.raises(ValueError, match=r"trace=long .* none, short, full, verbose"):
        prompt_text(PROBLEM, "long")


def test_roles_targets_and_weights() -> None:
    document = encode_document(PROBLEM, "short", SYMBOLIC, WEIGHTS)
    q, t, a = Role.QUESTION, Role.TRACE, Role.ANSWER
    assert document.roles.tolist() == [q] * 7 + [t] * 3 + [a] * 2
    assert document.loss.tolist() == [0.25] * 6 + [0.5] * 3 + [2.0] * 2 + [0.0]
    assert document.targets.tolist() == [*document.tokens[1:].tolist(), SYMBOLIC.pad_id]
    assert SYMBOLIC.decode(document.tokens.tolist()) == document_text(PROBLEM, "short")


@pytest.mark.parametrize("tokenizer", [SYMBOLIC, ByteTokenizer()], ids=["symbolic", "bytes"])
@given(name=st.sampled_from(sorted(TASKS)), trace=st.sampled_from(TRACES), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_every_task_and_trace(tokenizer, name: str, trace: str, seed: int) -> None:
    problem = problem_at(name, TASKS[name].levels[1], "train", seed, 0)
    document = encode_document(problem, trace, tokenizer, WEIGHTS)
    arrays = (document.tokens, document.targets, document.roles, document.loss)
    assert [array.dtype for array in arrays] == [np.int32, np.int32, np.uint8, np.float32]
    assert {len(array) for array in arrays} == {len(document)}
    assert tokenizer.decode(document.tokens.tolist()) == document_text(problem, trace)
    prompt = tokenizer.encode(prompt_text(problem, trace))
    assert document.tokens[: len(prompt)].tolist() == prompt
    assert (document.roles[: len(prompt)] == Role.QUESTION).all()
    rest = document.roles[len(prompt) :].tolist()
    assert rest == sorted(rest) and Role.ANSWER in rest
    assert (Role.TRACE in rest) == (trace != "none")
    answer = tokenizer.decode(document.tokens[document.roles == Role.ANSWER].tolist())
    assert TASKS[name].verify(problem, answer.replace("<eos>", ""))


def test_the_question_carries_no_loss_unless_asked_for() -> None:
    document = encode_document(PROBLEM, "none", SYMBOLIC, LossWeights())
    assert document.loss.tolist() == [0.0] * 5 + [1.0, 1.0, 0.0]


def test_dense_labels_stand_at_the_question() -> None:
    document = encode_document(PROBLEM, "none", SYMBOLIC, WEIGHTS, dense=True)
    assert SYMBOLIC.decode(document.targets.tolist()) == "L3 <none> 1 1 0 0 <eos> <pad>"
    assert SYMBOLIC.decode(document.targets[3:6].tolist()) == " ".join(PROBLEM.labels or ())
    assert document.loss.tolist() == [0.25] * 3 + [0.75] * 2 + [2.0] * 2 + [0.0]


@pytest.mark.parametrize("name", ["parity", "s3_swaps", "s5"])
def test_no_dense_label_answers_a_held_out_problem(name: str) -> None:
    level, masked = 16, 0
    for index in range(40):
        problem = problem_at(name, level, "train", 0, index)
        document = encode_document(problem, "none", SYMBOLIC, LossWeights(), dense=True)
        for place, weight in enumerate(document.loss[3 : 3 + level].tolist()):
            held_out = splittable(name, place + 1) and (
                split_of(name, " ".join(problem.question.split()[: place + 1])) != "train"
            )
            assert weight == (0.0 if held_out else 1.0)
            masked += held_out
    assert masked > 5


def test_a_prefix_that_is_a_test_problem_is_masked() -> None:
    """Grow a training question out of a real test question and look at that very label."""
    held_out = evaluation_problems("s3_swaps", 8, "test", 0, 1)[0]
    labels = tuple(TASKS["s3_swaps"].trace(held_out, "full"))
    question = f"{held_out.question} e1"
    grown = Problem("s3_swaps", 9, question, "e1", (*labels, "e1"), 5, labels=(*labels, "e1"))
    assert held_out_prefixes(grown).tolist() == [False] * 7 + [True, False]


def test_a_held_out_document_keeps_its_own_label() -> None:
    problem = problem_at("parity", 16, "validation", 0, 0)
    assert not held_out_prefixes(problem)[-1]


@pytest.mark.parametrize(
    ("name", "trace", "tokenizer", "message"),
    [
        ("phop", "none", SYMBOLIC, "dense=true needs a task with labels, which phop has not"),
        ("parity", "full", SYMBOLIC, "dense=true needs trace=none, not trace=full"),
        ("s5", "none", ByteTokenizer(), "dense=true needs one token a symbol"),
        ("parity", "none", ByteTokenizer(), "dense=true needs one token a symbol"),
    ],
)
def test_impossible_dense_documents_are_refused(name, trace, tokenizer, message) -> None:
    problem = problem_at(name, TASKS[name].levels[1], "train", 0, 0)
    with pytest.raises(ValueError, match=message):
        encode_document(problem, trace, tokenizer, LossWeights(), dense=True)
