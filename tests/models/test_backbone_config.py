"""Settings as plain data and back, and what is refused, by name."""

import json
from typing import Any

import pytest

from models.backbone import Backbone
from models.config import BackboneConfig, backbone_from_dict, to_dict
from models.depth.listing import DEPTHS
from models.latent.listing import LATENTS
from models.mixer import MixerConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.listing import MIXERS
from models.mixers.mamba2 import Mamba2Config
from tests.models.cases import BACKBONE_CASES, SITE, backbone_config, build_backbone


@pytest.mark.parametrize("case", BACKBONE_CASES)
def test_settings_survive_the_way_through_json(case: str) -> None:
    config = BACKBONE_CASES[case]
    again = backbone_from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert list(build_backbone(again).state_dict()) == list(build_backbone(config).state_dict())


def test_reading_plain_data_leaves_it_alone() -> None:
    data = to_dict(BACKBONE_CASES["looped"])
    before = json.dumps(data)
    backbone_from_dict(data)
    assert json.dumps(data) == before


def test_what_is_left_out_takes_its_default() -> None:
    config = backbone_from_dict({"mixers": {"attn": {"kind": "attn"}}, "vocab_size": 9})
    assert config == BackboneConfig(mixers={"attn": AttentionConfig()}, vocab_size=9)


@pytest.mark.parametrize("listing", [MIXERS, DEPTHS, LATENTS], ids=["mixers", "depths", "latents"])
def test_the_tag_of_each_config_is_its_name_in_the_list(listing: dict[str, Any]) -> None:
    assert {name: config().kind for name, config in listing.items()} == {n: n for n in listing}


ATTENTION = {"attn": {"kind": "attn"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dims": 3}, "backbone.dims is not a setting: choose one of name, dim, "),
        (
            {"mixers": {"a": {"kind": "atn"}}},
            "backbone.mixers.a.kind=atn is not known: .*attn, .*gdn",
        ),
        ({"mixers": {"a": {}}}, "backbone.mixers.a.kind=None is not known"),
        ({"mixers": {"a": "attn"}}, "backbone.mixers.a.kind=None is not known"),
        (
            {"mixers": {"a": {"kind": "attn", "windo": 3}}},
            "backbone.mixers.a.windo is not a setting",
        ),
        ({"depth": {"kind": "deep"}}, "backbone.depth.kind=deep is not known: .*fixed, looped"),
        ({"depth": {"kind": "fixed", "loops": 2}}, "backbone.depth.loops is not a setting"),
        ({"latent": {"kind": "thought"}}, "backbone.latent.kind=thought is not known: .*none"),
    ],
)
def test_unknown_keys_and_kinds_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        backbone_from_dict({"mixers": ATTENTION, **data})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AttentionConfig(num_heads=3), "num_heads=3 doesn't divide dim=16: choose a divisor"),
        (AttentionConfig(num_heads=0), "num_heads=0"),
        (AttentionConfig(head_dim=5), "head_dim=5 doesn't divide dim=16: choose a divisor"),
        (AttentionConfig(num_kv_heads=3), "num_kv_heads=3 doesn't divide num_heads=4"),
        (AttentionConfig(num_kv_heads=0), "num_kv_heads=0"),
        (AttentionConfig(num_heads=2, head_dim=3), "head_dim=3 is odd: .*rope_base=null"),
        (AttentionConfig(window=0), "window=0 must be at least 1 token, or null for all"),
        (AttentionConfig(conv_width=-1), "conv_width=-1 must be at least 0"),
        (GatedDeltaNetConfig(head_dim=0), "head_dim=0 must be at least 1, or null to derive it"),
        (GatedDeltaNetConfig(num_heads=2, head_dim=-3), "head_dim=-3 must be at least 1"),
        (GatedDeltaNetConfig(num_heads=5), "num_heads=5 doesn't divide dim=16"),
        (GatedDeltaNetConfig(expand_v=0.3), "expand_v=0.3 times head_dim=4 is not a whole number"),
        (GatedDeltaNetConfig(expand_v=-1), "expand_v=-1"),
        (GatedDeltaNetConfig(conv_width=-1), "conv_width=-1 must be at least 0"),
        (GatedDeltaNetConfig(chunk_size=0), "chunk_size=0 must be at least 1"),
        (Mamba2Config(head_dim=5), "head_dim=5 doesn't divide expand.dim=32: choose a divisor"),
        (Mamba2Config(num_groups=3), "num_groups=3 doesn't divide the 8 heads: choose a divisor"),
        (Mamba2Config(num_groups=0), "num_groups=0"),
        (Mamba2Config(conv_width=-1), "conv_width=-1 must be at least 0"),
        (Mamba2Config(chunk_size=0), "chunk_size=0 must be at least 1"),
        (Mamba2Config(expand=0), "head_dim=4 doesn't divide expand.dim=0"),
        (Mamba2Config(head_dim=-4), "head_dim=-4 doesn't divide expand.dim=32"),
        (Mamba2Config(state_dim=-4), "state_dim=-4"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_impossible_mixers_are_refused(config: MixerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config.build(SITE)
    assert "\n" not in str(error.value)


def test_an_impossible_mixer_is_named_by_its_place() -> None:
    config = backbone_config("attn", mixers={"attn": AttentionConfig(num_heads=3)})
    with pytest.raises(ValueError, match=r"^backbone.mixers.attn: num_heads=3 doesn't divide"):
        Backbone(config)


@pytest.mark.parametrize("unset", [{"vocab_size": 0}, {"mlp_hidden": None}, {"mlp_hidden": 0}])
def test_what_must_be_derived_first_is_named(unset: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"backbone.{next(iter(unset))}=.*models.sizing.resolve"):
        Backbone(backbone_config(**unset))
