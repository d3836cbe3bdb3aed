"""A corpus that cannot be made is refused in one line that names the key and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from data.config import DataConfig
from data.document import LossWeights
from data.source_config import SourceConfig
from data.tokenizer import TokenizerConfig


def source(**changes: Any) -> dict[str, SourceConfig]:
    return {"direct": SourceConfig(**{"task": "parity", "levels": [8], **changes})}


BAD = [
    ({"sources": {}}, "data.sources={}"),
    ({"sources": source(task="parrot")}, "data.sources.direct.task='parrot'"),
    ({"sources": source(task="")}, "data.sources.direct.task=''"),
    ({"sources": source(trace="long")}, "data.sources.direct.trace='long'"),
    ({"sources": source(levels=[])}, "data.sources.direct.levels=[]"),
    ({"sources": source(levels=[8, 999])}, "data.sources.direct.levels=999"),
    ({"sources": source(weight=0.0)}, "data.sources.direct.weight=0.0"),
    ({"sources": source(weight=-1.0)}, "data.sources.direct.weight=-1.0"),
    ({"sources": source(weight=float("nan"))}, "data.sources.direct.weight=nan"),
    ({"sources": source(dense=True, trace="full")}, "data.sources.direct.dense=True"),
    ({"sources": source(dense=True, task="phop")}, "data.sources.direct.dense=True"),
    ({"context": 15}, "data.context=15"),
    ({"seed": -1}, "data.seed=-1"),
    ({"num_documents": 0}, "data.num_documents=0"),
    ({"num_validation_documents": -1}, "data.num_validation_documents=-1"),
    ({"documents_per_shard": 0}, "data.documents_per_shard=0"),
    ({"workers": -1}, "data.workers=-1"),
    ({"name": ""}, "data.name=''"),
    ({"name": "../x"}, "data.name='../x'"),
    ({"loss": LossWeights(trace=-1.0)}, "data.loss.trace=-1.0"),
    ({"loss": LossWeights(answer=float("inf"))}, "data.loss.answer=inf"),
    ({"loss": LossWeights(0.0, 0.0, 0.0, 0.0)}, "data.loss="),
    ({"tokenizer": TokenizerConfig("morse")}, "data.tokenizer.kind=morse"),
    ({"root": __file__}, f"data.root={__file__!r}"),
    ({"root": f"{__file__}/corpora"}, "data.root="),
]


@pytest.mark.parametrize(("changes", "start"), BAD, ids=[start for _, start in BAD])
def test_impossible_is_refused(tmp_path: Path, changes: dict[str, Any], start: str) -> None:
    config = DataConfig(**{"root": str(tmp_path), "sources": source(), **changes})
    with pytest.raises(ValueError) as error:
        config.validate()
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


def test_allowed_values_are_named() -> None:
    with pytest.raises(ValueError, match="parity, s3, "):
        DataConfig(sources=source(task="x")).validate()
    with pytest.raises(ValueError, match="none, short, full, verbose"):
        DataConfig(sources=source(trace="x")).validate()


def test_possible_passes(tmp_path: Path) -> None:
    DataConfig(root=str(tmp_path / "new" / "folder"), sources=source(dense=True)).validate()


def test_is_a_structured_config(tmp_path: Path) -> None:
    """Hydra's overrides reach every field, and a typo is refused."""
    schema = OmegaConf.structured(DataConfig)
    yaml = OmegaConf.create({"sources": {"direct": {"task": "parity", "levels": [8, 8, 16]}}})
    overrides = OmegaConf.from_dotlist(
        ["sources.direct.weight=2", "loss.trace=0.3", "tokenizer.kind=bytes", f"root={tmp_path}"]
    )
    config = OmegaConf.to_object(OmegaConf.merge(schema, yaml, overrides))
    assert isinstance(config, DataConfig)
    config.validate()
    assert config.sources == {"direct": SourceConfig("parity", "none", [8, 8, 16], 2.0)}
    assert config.loss == LossWeights(trace=0.3)
    with pytest.raises(Exception, match="weigth"):
        OmegaConf.merge(schema, yaml, OmegaConf.from_dotlist(["sources.direct.weigth=2"]))
