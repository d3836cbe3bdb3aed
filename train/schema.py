"""The typed config: every key of every YAML is checked against a dataclass while Hydra composes."""

from dataclasses import replace
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from models.config import BackboneConfig
from models.depth.listing import DEPTHS
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS

from .config import RunConfig


def register_schemas() -> None:
    """Register the root, and one schema for each mixer, depth and latent in its list."""
    store = ConfigStore.instance()
    # Polymorphic parts have no default here: their YAML brings the schema of their own kind.
    missing = cast(Any, MISSING)
    backbone = replace(BackboneConfig(), depth=missing, latent=missing)
    store.store(name="schema", node=replace(RunConfig(), backbone=backbone))
    for group, listing in (("mixer", MIXERS), ("depth", DEPTHS), ("latent", LATENTS)):
        for name, config in listing.items():
            store.store(group=f"schema/{group}", name=name, node=config)


def to_config(composed: DictConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Return the composed config as dataclasses, checked, and as plain data.

    Raises:
        ValueError: on an impossible combination, naming the key.
    """
    plain = OmegaConf.to_container(composed, resolve=True)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig) and isinstance(plain, dict)
    config.validate()
    return config, cast(dict[str, Any], plain)
