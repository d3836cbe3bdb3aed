"""Published architectures of configs/, tiny: cases of the conformance tests."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from models.config import BackboneConfig, backbone_from_dict
from models.mixer import MixerConfig
from models.mixers.block_sparse import BlockSparseConfig

CHUNK = 8
VOCABULARY = 24


def small_chunks(config: MixerConfig, chunk_size: int = CHUNK) -> MixerConfig:
    """Shrink the chunks, where there are any, so that short sequences cross their borders."""
    return replace(config, chunk_size=chunk_size) if hasattr(config, "chunk_size") else config


PUBLISHED = (
    *("qwen3_next", "olmo_hybrid", "kimi_linear", "nemotron_h", "falcon_h1", "minimax_01"),
    *("rwkv7", "nsa", "moba", "zamba", "samba"),
    *("huginn", "parcae", "ouro", "mor", "lt2", "looped_moe"),
)
CONFIGS = Path(__file__).parents[2] / "configs"


def published(name: str) -> BackboneConfig:
    """Return a published architecture of configs/, tiny: its own layers or its layout once."""
    plain: Any = OmegaConf.load(CONFIGS / "backbone" / f"{name}.yaml")
    kinds = {key.split(".")[-1].removesuffix("_"): kind for key, kind in _choices(plain.defaults)}
    own = OmegaConf.to_container(plain.backbone)
    assert isinstance(own, dict)
    mixers = own.setdefault("mixers", {})
    for mixer in {kind for key, kind in kinds.items() if key not in ("/mlp", "/depth")}:
        mixers[mixer] = {"kind": mixer, **mixers.get(mixer, {})}
    if "/mlp" in kinds:
        own["mlp"] = {"kind": kinds["/mlp"], **own.get("mlp", {})}
    own["depth"] = {**_depth(kinds["/depth"]), **own.get("depth", {})}
    layers = sum(int(term.split("*")[0]) if "*" in term else 1 for term in own["layout"].split())
    tiny = {"dim": 16, "head_dim": 8, "mlp_hidden": 12, "vocab_size": VOCABULARY}
    config = backbone_from_dict({"num_layers": layers, **own, **tiny})
    mixers = {name: small_chunks(mixer) for name, mixer in config.mixers.items()}
    for name, mixer in mixers.items():
        if isinstance(mixer, BlockSparseConfig):
            mixers[name] = replace(mixer, block_size=3)
    return replace(config, mixers=mixers)


def _depth(name: str) -> dict[str, Any]:
    """Settings of a depth of configs/."""
    plain: Any = OmegaConf.load(CONFIGS / "depth" / f"{name}.yaml")
    kind = next(kind for key, kind in _choices(plain.defaults[:1]))
    own = OmegaConf.to_container(plain)
    assert isinstance(own, dict)
    return {"kind": kind} | {str(key): value for key, value in own.items() if key != "defaults"}


def _choices(defaults: Any) -> Iterator[tuple[str, str]]:
    """The group and the choice of each line of a defaults list."""
    for line in defaults:
        for key, kind in line.items():
            yield key.removeprefix("override "), kind
