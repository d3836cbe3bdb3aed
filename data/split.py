"""Which problem belongs to train, validation or test, and how any one of them is made again alone.

A split is decided by a hash of the question alone, so a question is in the same split whatever the
seed, level or corpus; and an item is a pure function of (task, level, split, seed, index).
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from .task_list import find_task
from .tasks.task import Problem

SPLITS = ("train", "validation", "test")
SHARES = (85, 5, 10)  # percent

# A level is split only where it surely has 500 distinct test questions: with 6,000 questions a
# tenth of them is 600, and 500 is more than four standard deviations of the hash below that.
SMALLEST_SPLITTABLE = 6_000

# At a share of 5% the chance of missing a split so often in a row is below 1e-200.
MAX_REDRAWS = 10_000


def split_of(task: str, question: str) -> str:
    """The split of a question, by a hash that is the same in every process and on every machine."""
    digest = blake2b(f"{task}\n{question}".encode(), digest_size=8, person=b"split").digest()
    percentile = int.from_bytes(digest, "little") % 100
    if percentile < SHARES[0]:
        return "train"
    return "validation" if percentile < SHARES[0] + SHARES[1] else "test"


def splittable(task: str, level: int) -> bool:
    """Whether a level has problems enough to hold some out; one that has not is train-only."""
    if find_task(task).test_only:
        return True
    num_problems = find_task(task).num_problems(level)
    return num_problems is None or num_problems >= SMALLEST_SPLITTABLE


def problem_at(task: str, level: int, split: str, seed: int, index: int) -> Problem:
    """Item `index` of a split, made alone: redrawn from its own stream until it is in the split.

    A train-only level skips the test of the split for "train" and raises ValueError for the others.
    """
    check_level_and_split(task, level, split)
    check_held_out(task, level, split)
    if index < 0:
        raise ValueError(f"index={index} is negative: items are counted from 0")
    generator, rng = find_task(task), item_rng(task, level, split, seed, index)
    if not splittable(task, level):
        return generator.sample(rng, level)
    for _ in range(MAX_REDRAWS):
        problem = generator.sample(rng, level)
        if split_of(task, generator.split_key(problem)) == split:
            return problem
    raise RuntimeError(f"{task} level {level} gave no {split} problem in {MAX_REDRAWS} draws")


def evaluation_problems(task: str, level: int, split: str, seed: int, count: int) -> list[Problem]:
    """`count` problems with distinct questions, in the order of their indices.

    A train-only level gives its training problems, at most as many as it has. A splittable one that
    holds fewer distinct questions in the split than asked for raises ValueError.
    """
    check_level_and_split(task, level, split)
    if (given := find_task(task).fixed(level)) is not None:
        return _of_given(task, given, split, seed, count)
    only_train, num_problems = not splittable(task, level), find_task(task).num_problems(level)
    held = "train" if only_train else split
    wanted = min(count, num_problems) if only_train and num_problems is not None else count
    found: dict[str, Problem] = {}
    # The last of n equally likely questions takes about n ln n draws to turn up.
    for index in range(10 * wanted + 2_000):
        if len(found) >= wanted:
            break
        problem = problem_at(task, level, held, seed, index)
        found.setdefault(problem.question, problem)
    if len(found) < wanted and not only_train:
        raise ValueError(
            f"{task} level {level} has hardly more than {len(found)} distinct {split} questions and"
            f" {count} were asked for: ask for fewer or take a higher level"
        )
    return list(found.values())


def _of_given(task: str, given: list[Problem], split: str, seed: int, count: int) -> list[Problem]:
    """`count` questions of a test set, or as many as it has, in an order that the seed gives."""
    if split != "test":
        raise ValueError(f"{task} has test questions only: ask for split=test, not {split}")
    order = item_rng(task, 0, split, seed, 0).permutation(len(given))
    return [given[place] for place in order[:count].tolist()]


def check_level_and_split(task: str, level: int, split: str) -> None:
    """Raises ValueError where there is no such task, level or split."""
    find_task(task).check_level(level)
    if split not in SPLITS:
        raise ValueError(f"split={split} is not a split: use one of {', '.join(SPLITS)}")


def check_held_out(task: str, level: int, split: str) -> None:
    """Raises ValueError where problems are asked of a train-only level for another split."""
    if split != "train" and not splittable(task, level):
        raise ValueError(
            f"{task} level {level} is train-only: its {find_task(task).num_problems(level)}"
            f" questions are too few to hold any out for split={split}; use a higher level"
        )


def item_rng(task: str, level: int, split: str, seed: int, index: int) -> np.random.Generator:
    """The item's own stream: Philox keyed by the rest, the index in the counter's upper half.

    In the lower half, neighbouring items would read the same stream shifted by one block.
    """
    key = stream_key(task, level, split, seed)
    return np.random.Generator(np.random.Philox(key=key, counter=index << 128))


@lru_cache(maxsize=4096)
def stream_key(task: str, level: int, split: str, seed: int) -> int:
    """A 128-bit key."""
    name = f"{task}\n{level}\n{split}\n{seed}".encode()
    return int.from_bytes(blake2b(name, digest_size=16, person=b"stream").digest(), "little")
