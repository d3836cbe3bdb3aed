"""A change of what tasks write must raise GENERATOR_VERSION, or an old corpus is taken for new."""

import hashlib

import pytest

from data.document import document_text
from data.manifest import GENERATOR_VERSION
from data.split import problem_at
from data.task_list import TASKS
from data.tasks.task import TRACES

# Where this test fails after a change that was meant: raise GENERATOR_VERSION in data/manifest.py
# and write the new digests here. A new task need not be added.
VERSION = 2
DIGESTS = {
    "parity": "8ebd5a655d3b19f7",
    "s3": "81a0f2d4ec6efcce",
    "s3_swaps": "010f69050dd02b02",
    "a5": "c290b3fb71dd705c",
    "s5": "379348da0dd88ec9",
    "phop": "d59f630448d0934d",
    "mqar": "f27726f738f37f1b",
    "addition": "a64819ec4eae06fd",
    "prosqa": "09244e5740811aa0",
    "igsm": "a77c42ed024edfbf",
    "noisy_recall": "1f9e6b0a07a7584f",
    "fuzzy_recall": "9385149e2101ef7d",
    "changing_recall": "0833fba55262aacf",
    "var_assign": "8e875cd1c13449d9",
    "mano": "ed9abfe1d246b646",
    "multiplication": "0c1cb178bd029fde",
    "mixed_chain": "5a81753eca6f2bae",
    "mnns": "8f252ebacdf55122",
    "small_program": "a73659f670aa98c7",
}


def digest(task: str) -> str:
    """Of a few documents in each mode, over the levels that are trained on."""
    texts = [
        document_text(problem_at(task, level, "train", 0, index), trace)
        for level in TASKS[task].levels
        for index in range(2)
        for trace in TRACES
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("task", DIGESTS)
def test_documents_change_only_with_the_version(task: str) -> None:
    assert (GENERATOR_VERSION, digest(task)) == (VERSION, DIGESTS[task])
