"""The typed config: every key of every YAML is checked against a dataclass while Hydra composes."""

from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from models.config import BackboneConfig
from models.depth.listing import DEPTHS
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS
from models.mlps.listing import MLPS

from .config import RunConfig


def register_schemas() -> None:
    """Register the root, and one schema for each mixer, MLP, depth and latent in its list."""
    store = ConfigStore.instance()
    # Polymorphic parts have no default here: their YAML brings the schema of their own kind.
    missing = cast(Any, MISSING)
    backbone = replace(BackboneConfig(), depth=missing, latent=missing, mlp=missing)
    store.store(name="schema", node=replace(RunConfig(), backbone=backbone))
    listings = {"mixer": MIXERS, "mlp": MLPS, "depth": DEPTHS, "latent": LATENTS}
    for group, listing in listings.items():
        for name, config in listing.items():
            store.store(group=f"schema/{group}", name=name, node=config)


def check_command_line(arguments: list[str]) -> None:
    """Check what `--cfg` would only print: Hydra then composes, but runs nothing."""
    if not any(argument.startswith("--cfg") or argument == "-c" for argument in arguments):
        return
    overrides = [argument for argument in arguments if "=" in argument and argument[0] != "-"]
    with initialize_config_module(config_module="configs", version_base="1.3"):
        to_config(compose("train", overrides))


def to_config(composed: DictConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Return the composed config as dataclasses, checked, and as plain data.

    Raises:
        ValueError: on an impossible combination, naming the key.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    _refuse_unknown(config)
    if not config.eval.tasks:
        config.eval.tasks = config.tasks_of_corpus()
        plain["eval"]["tasks"] = {name: asdict(task) for name, task in config.eval.tasks.items()}
    config.validate()
    return config, plain


def _refuse_unknown(value: Any, key: str = "") -> None:
    """Refuse keys that `+key=value` put where no setting is: Hydra lets them pass."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in entries:
            _refuse_unknown(entry, f"{key}.{name}")
    if not is_dataclass(value):
        return
    allowed = [field.name for field in fields(value)]
    for name, entry in vars(value).items():
        path = f"{key}.{name}".removeprefix(".")
        if name not in allowed:
            raise ValueError(f"{path} is not a setting: choose one of {', '.join(allowed)}")
        _refuse_unknown(entry, path)
