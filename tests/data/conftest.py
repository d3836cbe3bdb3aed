"""A small corpus, made once for all tests that only read one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.make import make_corpus
from data.source_config import SourceConfig

ConfigFactory = Callable[..., DataConfig]


def small_config(root: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "root": str(root),
        "context": 64,
        "num_documents": 300,
        "num_validation_documents": 40,
        "documents_per_shard": 100,
        "workers": 1,
        "sources": {
            "direct": SourceConfig("s3_swaps", "none", [2, 4, 8, 16], 1.0),
            "written": SourceConfig("s3_swaps", "full", [4, 16], 0.5),
            "dense": SourceConfig("parity", "none", [8, 16], 0.5, dense=True),
        },
    }
    return DataConfig(**{**settings, **changes})


@pytest.fixture
def config_at() -> ConfigFactory:
    return small_config


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(small_config(tmp_path_factory.mktemp("corpora")), progress=False)
