"""The corpus's part of the root config, typed; what other verbs own is carried along untyped."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from .config import DataConfig


@dataclass
class CorpusRoot:
    """The root config as the corpus verb sees it: only `data` is its own."""

    data: DataConfig = field(default_factory=DataConfig)
    experiment_name: str = "default"
    runs: str = "runs"
    seed: int = 0
    deterministic: bool = False
    backbone: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    stages: list[Any] = field(default_factory=lambda: [{}])
    trainer: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    returns: list[str] = field(default_factory=list)
    concepts: dict[str, Any] = field(default_factory=dict)


def register_schema() -> None:
    """Register the root, so that `python -m data` takes every command that `python -m train` takes.

    Mixers, depths and latents stay untyped, their schemas are optional.
    """
    root = OmegaConf.structured(CorpusRoot)
    for name, part in root.items():
        if name != "data" and OmegaConf.is_config(part):
            OmegaConf.set_struct(part, False)
    ConfigStore.instance().store(name="schema", node=root)
