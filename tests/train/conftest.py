"""A corpus that all training tests share; each test has its own runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.make import make_corpus
from eval.config import EvalConfig, TaskEval
from eval.evaluate_run import evaluate_run
from tests.eval.thinking import train_run
from tests.train.runs import small_data, small_run
from train.config import RunConfig

EVALUATED = EvalConfig(
    tasks={"s3_swaps": TaskEval(levels=[8], traces=["full"])}, items=4, latency_items=0
)
RunFactory = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    make_corpus(small_data(root), progress=False)
    return root


@pytest.fixture(scope="session")
def corpus_path(corpora: Path) -> Path:
    return make_corpus(small_data(corpora), progress=False)


@pytest.fixture
def run_at(tmp_path: Path, corpora: Path) -> RunFactory:
    """Give the function that makes a small run's settings; its folder is the test's own."""
    return lambda **changes: small_run(tmp_path, corpora, **changes)


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with thoughts and loops, and its ledger."""
    folder = train_run(tmp_path_factory.mktemp("evaluated"), thinks=True)
    evaluate_run(folder, EVALUATED, device="cpu")
    return folder
