"""Settings of a backbone, and their way to plain data and back."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .depth.depth import DepthConfig
from .depth.fixed import FixedDepthConfig
from .depth.listing import DEPTHS
from .latent.latent import LatentConfig
from .latent.listing import LATENTS
from .latent.none import NoLatentConfig
from .mixer import MixerConfig
from .mixers.listing import MIXERS
from .mlps.listing import MLPS
from .mlps.mlp import MLPConfig
from .mlps.swiglu import SwiGLUConfig


@dataclass
class BackboneConfig:
    """One class for every architecture.

    Attributes:
        name: what the backbone is called in runs and reports.
        dim: model width D.
        num_layers: layers; those that share a tag of the layout are one stored block.
        head_dim: width of a head, for mixers that set none of their own.
        layout: which mixer stands in which layer, such as "3*gdn attn"; repeated to fill. Also
            "swa:256" (an argument), "attn+mamba2" (parallel heads), "attn@a" (a shared block) and
            "attn!" (no feed-forward network); see `models.layout`.
        mixers: settings of each mixer that the layout names.
        overrides: settings of single layers, such as {"3": {"window": 64}}; of a layer's mixer (of
            each that has the setting), or `mlp`: the kind of its feed-forward network, or none.
        mlp: the feed-forward network of every block.
        canon: places of residual causal convolutions in every block, some of "ACD" (B is the
            mixers' own conv_width): before the mixer, before and inside the feed-forward network.
        canon_width: tokens that those convolutions span.
        norm_place: where the norms of every block stand: pre, post, sandwich or sandwich_res; see
            `models.residual`.
        depth: how often which blocks run.
        latent: how it thinks without words.
        mlp_hidden: hidden width of the feed-forward networks; null derives it: from
            target_parameters, or else 8/3 of dim, rounded up to a multiple of 8.
        target_parameters: unique parameters to match by choosing mlp_hidden; null for none.
        vocab_size: rows of the embedding; 0 takes the corpus's tokenizer's.
        tie_embeddings: read out with the embedding's own weights.
        twin: build, in this looped backbone's place, the unlooped one that matches it in params,
            flops (of training) or depth (block calls); see `models.twins`.
    """

    name: str = "backbone"
    dim: int = 64
    num_layers: int = 4
    head_dim: int = 32
    layout: str = "attn"
    mixers: dict[str, MixerConfig] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    mlp: MLPConfig = field(default_factory=SwiGLUConfig)
    canon: str = ""
    canon_width: int = 4
    norm_place: str = "pre"
    depth: DepthConfig = field(default_factory=FixedDepthConfig)
    latent: LatentConfig = field(default_factory=NoLatentConfig)
    mlp_hidden: int | None = None
    target_parameters: int | None = None
    vocab_size: int = 0
    tie_embeddings: bool = False
    twin: str = "none"


def to_dict(config: BackboneConfig) -> dict[str, Any]:
    """Return plain data that `backbone_from_dict` reads back."""
    return asdict(config)


def backbone_from_dict(data: dict[str, Any]) -> BackboneConfig:
    """Build a config from plain data; `kind` picks the class of each mixer, MLP, depth and latent.

    Raises:
        ValueError: on an unknown key or kind, naming it and what is allowed.
    """
    plain = dict(data)
    mixers = plain.pop("mixers", {})
    plain["mixers"] = {
        name: _tagged(entry, MIXERS, f"backbone.mixers.{name}") for name, entry in mixers.items()
    }
    if "depth" in plain:
        plain["depth"] = _tagged(plain["depth"], DEPTHS, "backbone.depth")
    if "mlp" in plain:
        plain["mlp"] = _tagged(plain["mlp"], MLPS, "backbone.mlp")
    if "latent" in plain:
        plain["latent"] = _tagged(plain["latent"], LATENTS, "backbone.latent")
    return _known(BackboneConfig, plain, "backbone")


def _tagged(entry: Any, listing: dict[str, type[Any]], key: str) -> Any:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in listing:
        raise ValueError(f"{key}.kind={kind} is not known: choose one of {', '.join(listing)}")
    return _known(listing[kind], entry, key)


def _known(cls: type[Any], data: dict[str, Any], key: str) -> Any:
    allowed = [item.name for item in fields(cls)]
    for name in data:
        if name not in allowed:
            raise ValueError(f"{key}.{name} is not a setting: choose one of {', '.join(allowed)}")
    return cls(**data)
