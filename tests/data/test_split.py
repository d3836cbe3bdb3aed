"""Splits by hash, items made alone, streams that never overlap."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.split import (
    SPLITS,
    evaluation_problems,
    item_rng,
    problem_at,
    split_of,
    splittable,
)
from data.task_list import TASKS
from data.vocabulary import FIRST_TASKS

ROOT = Path(__file__).parents[2]

DIGEST = """
import hashlib
from data.split import problem_at
from data.task_list import TASKS
from data.vocabulary import FIRST_TASKS
items = [problem_at(name, TASKS[name].levels[-1], "train", 7, index) for name in FIRST_TASKS
         for index in (0, 5)]
print(hashlib.sha256(repr(items).encode()).hexdigest())
"""

# Of the items above (newer tasks are in test_generator_version.py). Where it changes, the same
# settings make another corpus: that must be wanted, and the version of the generators in the
# corpus' definition must change with it.
GOLDEN = "f37a56676665b11791d5928e1afdf42bcd361410bace18d19ee40e1344dd4da0"


def held_out_levels(name: str) -> list[int]:
    return [level for level in TASKS[name].levels if splittable(name, level)]


@pytest.mark.parametrize("name", TASKS)
def test_items_are_in_their_split_and_never_shared(name: str) -> None:
    level, questions = held_out_levels(name)[0], {}
    for split in SPLITS:
        problems = [problem_at(name, level, split, 0, index) for index in range(30)]
        assert {split_of(name, TASKS[name].split_key(problem)) for problem in problems} == {split}
        questions[split] = {problem.question for problem in problems}
    assert not questions["train"] & questions["validation"]
    assert not (questions["train"] | questions["validation"]) & questions["test"]


def test_shares_are_85_5_10() -> None:
    splits = [split_of("parity", str(index)) for index in range(20_000)]
    for split, share in zip(SPLITS, (0.85, 0.05, 0.10), strict=True):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.01)


def test_the_hash_is_frozen() -> None:
    """A change would move test questions of old checkpoints into training."""
    initials = "".join(split_of("parity", f"{index:b}")[1] for index in range(60))
    assert initials == "rrrrrrrrrrrrrrrrrrrrerrrrrrrarrrrrrrrrrarrrrerrrrrrrrrrrrrra"


def test_tasks_are_split_apart() -> None:
    questions = [str(index) for index in range(200)]
    assert [split_of("s3", q) for q in questions] != [split_of("s5", q) for q in questions]


@given(
    name=st.sampled_from(sorted(TASKS)),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**70),
)
@settings(deadline=None, max_examples=60)
def test_any_item_can_be_made_again_alone(name: str, split: str, seed: int, index: int) -> None:
    level = held_out_levels(name)[0]
    problem = problem_at(name, level, split, seed, index)
    problem_at(name, level, split, seed, index + 1)
    assert problem_at(name, level, split, seed, index) == problem
    assert split_of(name, TASKS[name].split_key(problem)) == split


def test_items_are_the_same_in_every_process() -> None:
    digests = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert digests == {GOLDEN}


def test_neighbouring_items_do_not_share_their_streams() -> None:
    """With the index in the counter's lower half, item 1 would be item 0 shifted by one block."""
    streams = [item_rng("s5", 4, "train", 0, index).integers(0, 2**63, 64) for index in range(3)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not set(streams[first].tolist()) & set(streams[second].tolist())


def test_every_part_of_the_key_matters() -> None:
    base = item_rng("s5", 4, "train", 0, 0).integers(2**63)
    others = [
        ("a5", 4, "train", 0, 0),
        ("s5", 5, "train", 0, 0),
        ("s5", 4, "test", 0, 0),
        ("s5", 4, "train", 1, 0),
        ("s5", 4, "train", 0, 1),
    ]
    assert base not in [item_rng(*key).integers(2**63) for key in others]


def test_small_levels_are_train_only() -> None:
    assert not splittable("s3_swaps", 7) and splittable("s3_swaps", 8)
    assert not splittable("parity", 12) and splittable("parity", 13)
    assert problem_at("parity", 4, "train", 0, 0).level == 4
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=r"parity level 4 is train-only: its 16 questions"):
            problem_at("parity", 4, split, 0, 0)


@pytest.mark.parametrize(("name", "level"), [("s3_swaps", 8), ("parity", 13), ("s3", 5)])
def test_the_smallest_splittable_levels_hold_500_test_questions(name: str, level: int) -> None:
    problems = evaluation_problems(name, level, "test", 0, 500)
    assert len({problem.question for problem in problems}) == 500
    assert {split_of(name, TASKS[name].split_key(problem)) for problem in problems} == {"test"}


def test_evaluation_problems_grow_without_changing() -> None:
    few, many = (evaluation_problems("igsm", 4, "test", 3, count) for count in (10, 20))
    assert many[:10] == few


def test_a_train_only_level_gives_all_that_it_has() -> None:
    assert len(evaluation_problems("s3_swaps", 2, "test", 0, 500)) == 9
    assert len(evaluation_problems("parity", 8, "test", 0, 500)) == 256


def test_too_many_test_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"s3_swaps level 8 has hardly more than 6\d\d distinct"):
        evaluation_problems("s3_swaps", 8, "test", 0, 800)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phopp", 4, "train", 0, 0), "task=phopp is not a task"),
        (("phop", 99, "train", 0, 0), "level=99 is not a level of phop"),
        (("phop", 4, "dev", 0, 0), "split=dev .* train, validation, test"),
        (("phop", 4, "train", 0, -1), "index=-1 is negative"),
    ],
)
def test_what_does_not_exist_is_refused(
    arguments: tuple[str, int, str, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        problem_at(*arguments)
    if arguments[-1] == 0:
        with pytest.raises(ValueError, match=message):
            evaluation_problems(*arguments[:4], count=5)


def test_the_digest_of_this_process_is_golden() -> None:
    items = [
        problem_at(name, TASKS[name].levels[-1], "train", 7, index)
        for name in FIRST_TASKS
        for index in (0, 5)
    ]
    assert hashlib.sha256(repr(items).encode()).hexdigest() == GOLDEN
