"""The settings as people meet them: every choice of configs/ composes, fits together and builds.

`public_keys.txt` holds every key that a person can set. A change of it breaks somebody's command or
checkpoint, so it is made on purpose:

    python -m tests.test_configs > tests/public_keys.txt
"""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from data.groups import describe_groups
from data.schema import CorpusRoot
from models.backbone import Backbone
from models.config import backbone_from_dict, to_dict
from models.depth.listing import DEPTHS
from models.latent.listing import LATENTS
from models.mixers.listing import MIXERS
from models.mlps.listing import MLPS
from models.sizing import resolve
from train.config import RunConfig
from train.schema import register_schemas, to_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SNAPSHOT = Path(__file__).parent / "public_keys.txt"
LISTINGS: dict[str, dict[str, type[Any]]] = {
    "mixer": dict(MIXERS),
    "mlp": dict(MLPS),
    "depth": dict(DEPTHS),
    "latent": dict(LATENTS),
}
GROUPS = {
    *(
        "backbone",
        "mixer",
        "mlp",
        "depth",
        "latent",
        "size",
        "data",
        "optim",
        "trainer",
        "parallel",
    ),
    *("logger", "experiment", "arm", "sweep", "launcher", "debug"),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str) -> tuple[RunConfig, dict[str, Any]]:
    """Compose and check a run as the verb does."""
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        return to_config(compose("train", list(overrides)))


def public_keys(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key below a dataclass; `*` stands for a name that people choose."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        yield from _keys_of(hints[field.name], f"{prefix}{field.name}")


def _keys_of(hint: Any, key: str) -> Iterator[str]:
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    inner = get_args(hint)
    if get_origin(hint) is dict:
        yield from _keys_of(inner[1], f"{key}.*")
    elif get_origin(hint) is list and is_dataclass(inner[0]):
        yield from _keys_of(inner[0], f"{key}.N")
    elif hint in _BASES:
        for name, cls in LISTINGS[_BASES[hint]].items():
            yield from public_keys(cls, f"{key}({name}).")
    elif is_dataclass(hint):
        assert isinstance(hint, type)
        yield from public_keys(hint, f"{key}.")
    else:
        yield key


_BASES = {listing[next(iter(listing))].__mro__[1]: group for group, listing in LISTINGS.items()}


def all_keys() -> list[str]:
    return sorted(public_keys(RunConfig))


def test_no_public_key_changes_by_accident() -> None:
    """After a change on purpose: python -m tests.test_configs > tests/public_keys.txt."""
    assert all_keys() == SNAPSHOT.read_text().splitlines()


def test_the_groups_are_the_designs() -> None:
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == GROUPS
    assert all(any((CONFIGS / group).rglob("*.yaml")) for group in GROUPS)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_fits_together(name: str) -> None:
    """With each of its runs, where it is a study; `composed` builds where nothing is allocated."""
    config, _ = composed(f"experiment={name}")
    assert config.experiment_name == name
    assert config.eval.tasks
    for run, overrides in config.study.runs.items():
        inner, _ = composed(f"experiment={name}", *overrides)
        assert inner.experiment_name == name, run
        assert inner.data == config.data, run


# Sizes that no test trains take longer to build: three families stand for all.
LARGE, FAMILIES = {"150m", "1b", "7b"}, {"transformer", "gdn_hybrid", "looped"}
SIZED = [
    (backbone, size)
    for backbone in options("backbone")
    for size in options("size")
    if size not in LARGE or backbone in FAMILIES
]


@pytest.mark.parametrize(("backbone", "size"), SIZED)
def test_every_backbone_has_every_size(backbone: str, size: str) -> None:
    reads = ["data=smoke_bytes"] if backbone.startswith("bytes_") else []
    config, plain = composed(f"backbone={backbone}", f"size={size}", *reads)
    # Where one file serves every mixer, the backbone bears the mixer's name.
    assert config.backbone.name == backbone.replace("mixer", "gdn")
    with torch.device("meta"):
        built = Backbone(resolve(config.backbone, vocab_size=512))
    assert len(built.depth.order) == config.backbone.num_layers
    assert backbone_from_dict(plain["backbone"]) == config.backbone
    assert backbone_from_dict(to_dict(config.backbone)) == config.backbone


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={name}"
        for group in (
            "data",
            "optim",
            "trainer",
            "parallel",
            "logger",
            "debug",
            "mlp",
            "depth",
            "latent",
            "sweep",
            "launcher",
        )
        for name in options(group)
    ],
)
def test_every_other_choice_composes(override: str) -> None:
    # Thoughts come before a written trace, which the default corpus has not; chunks are of bytes.
    needs = {"latent=chunk": ["data=smoke_bytes"]}
    composed(override, *needs.get(override, ["data=smoke"] if "latent=" in override else []))


@pytest.mark.parametrize("group", LISTINGS)
def test_every_kind_is_listed_has_a_schema_and_a_file(group: str) -> None:
    """And is called the same in all three."""
    register_schemas()
    listing = LISTINGS[group]
    designs = set(options(group)) - set(listing)
    assert set(listing) <= set(options(group))
    assert not designs or group == "depth", "published designs are choices of depth, beside kinds"
    schemas = ConfigStore.instance().repo["schema"][group]
    assert sorted(schemas) == sorted(f"{name}.yaml" for name in listing)
    for name, cls in listing.items():
        assert cls().kind == name
        assert OmegaConf.get_type(schemas[f"{name}.yaml"].node) is cls


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_is_swapped_from_the_command_line(name: str) -> None:
    config, plain = composed(f"mixer@backbone.mixers.attn={name}")
    assert type(config.backbone.mixers["attn"]) is MIXERS[name]
    assert plain["backbone"]["mixers"]["attn"]["kind"] == name


def test_what_is_given_wins_over_what_a_backbone_brings() -> None:
    for backbone, depth in (("transformer", "looped"), ("looped", "fixed")):
        config, _ = composed(f"backbone={backbone}", f"depth={depth}")
        assert config.backbone.depth.kind == depth
    assert composed("backbone=looped")[0].backbone.depth.kind == "looped"
    config, _ = composed("experiment=quickstart", "seed=3", "trainer.max_steps=7")
    assert (config.seed, config.trainer.max_steps) == (3, 7)


def test_the_corpus_verb_knows_the_same_root() -> None:
    """Otherwise `python -m data` would refuse what `python -m train` takes."""
    assert {field.name for field in fields(CorpusRoot)} == {
        field.name for field in fields(RunConfig)
    }


def test_every_choice_says_what_it_is() -> None:
    lines = describe_groups().splitlines()
    assert len(lines) == sum(len([*(CONFIGS / group).rglob("*.yaml")]) for group in GROUPS)
    for line in lines:
        name, _, said = line.strip().partition(" ")
        assert said.strip(), f"configs/{name.replace('=', '/')}.yaml begins with no comment"
        assert len(line) <= 100
    assert all(line.strip().startswith("data=") for line in describe_groups("data").splitlines())


def test_plain_settings_hold_every_key() -> None:
    """config.yaml is what a run is made again from."""
    config, plain = composed("experiment=smoke")
    assert plain.keys() == {field.name for field in fields(config)}
    assert plain["eval"]["tasks"].keys() == {"s3_swaps"}
    assert composed("data=quickstart")[1]["eval"]["tasks"].keys() == {"s3_swaps"}


if __name__ == "__main__":
    sys.stdout.write("\n".join(all_keys()) + "\n")
