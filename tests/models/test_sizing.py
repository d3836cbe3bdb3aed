"""Sizes that are derived, so that backbones have equal parameters."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from models.backbone import Backbone
from models.config import BackboneConfig
from models.sizing import TOLERANCE, count_parameters, matched_mlp_hidden, resolve
from tests.models.cases import BACKBONE_CASES, backbone_config
from train.schema import register_schemas

CONFIGS = Path(__file__).parents[2] / "configs"
TARGET = 300_000
BACKBONES = sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml"))


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        yield


@pytest.mark.parametrize("name", BACKBONES)
def test_each_backbone_of_the_configs_is_matched(hydra: None, name: str) -> None:
    sizes = {"dim": 64, "num_layers": 4, "target_parameters": TARGET}
    overrides = [f"backbone={name}", *(f"backbone.{key}={value}" for key, value in sizes.items())]
    config = OmegaConf.to_object(compose("train", overrides).backbone)
    assert isinstance(config, BackboneConfig)
    resolved = resolve(config, vocab_size=384)
    built = Backbone(resolved).num_parameters
    assert built == pytest.approx(TARGET, rel=TOLERANCE), f"mlp_hidden={resolved.mlp_hidden}"
    assert resolved == replace(config, vocab_size=384, mlp_hidden=resolved.mlp_hidden)


def test_the_tolerance_is_three_percent() -> None:
    assert TOLERANCE == 0.03


@pytest.mark.parametrize("case", BACKBONE_CASES)
def test_parameters_are_counted_without_building(case: str) -> None:
    config = BACKBONE_CASES[case]
    assert count_parameters(config) == Backbone(config).num_parameters


def test_a_target_without_a_width_to_choose_is_refused() -> None:
    with pytest.raises(ValueError, match="no feed-forward network of the backbone backbone takes"):
        matched_mlp_hidden(BACKBONE_CASES["moe alone"], 30_000)


@pytest.mark.parametrize("case", [case for case in BACKBONE_CASES if case != "moe alone"])
def test_no_other_width_comes_nearer(case: str) -> None:
    config, target = BACKBONE_CASES[case], 30_000
    width = matched_mlp_hidden(config, target)
    errors = {
        near: abs(count_parameters(replace(config, mlp_hidden=near)) - target)
        for near in (width - 1, width, width + 1)
    }
    assert errors[width] == min(errors.values()), errors


@pytest.mark.parametrize("target", [1, 2_500])
def test_a_target_below_the_smallest_is_refused(target: int) -> None:
    config = backbone_config(mlp_hidden=None, target_parameters=target, name="tiny")
    smallest = count_parameters(replace(config, mlp_hidden=1))
    with pytest.raises(ValueError, match=f"backbone.target_parameters={target} can't be met") as e:
        resolve(config, config.vocab_size)
    assert f"the tiny backbone has {smallest} parameters" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_target_between_two_widths_is_refused_where_it_is_too_far() -> None:
    config = backbone_config(num_layers=40, dim=16, vocab_size=2)
    low, high = (count_parameters(replace(config, mlp_hidden=width)) for width in (1, 2))
    middle = (low + high) // 2
    if (high - low) / 2 > TOLERANCE * middle:
        with pytest.raises(ValueError, match="can't be met within 3%"):
            matched_mlp_hidden(config, middle)
    assert matched_mlp_hidden(config, low) == 1
    assert matched_mlp_hidden(config, high) == 2


def test_the_vocabulary_is_the_corpus_s() -> None:
    assert resolve(backbone_config(vocab_size=0), 384).vocab_size == 384
    assert resolve(backbone_config(vocab_size=384), 384).vocab_size == 384
    with pytest.raises(ValueError, match=r"backbone.vocab_size=100, but .* has 384: set 0"):
        resolve(backbone_config(vocab_size=100), 384)


@pytest.mark.parametrize(("dim", "hidden"), [(1, 8), (3, 8), (4, 16), (48, 128), (64, 176)])
def test_the_width_follows_from_dim_where_nothing_is_asked(dim: int, hidden: int) -> None:
    """8/3 of dim, rounded up to a multiple of 8, as `BackboneConfig` says."""
    assert resolve(backbone_config(dim=dim, mlp_hidden=None), 24).mlp_hidden == hidden


def test_a_width_that_is_set_stays() -> None:
    config = backbone_config(mlp_hidden=40)
    assert resolve(config, config.vocab_size) == config
