"""A corpus that all training tests share; each test has its own runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.make import make_corpus
from tests.train.runs import small_data, small_run
from train.config import RunConfig

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
