"""The stack: the blocks that a layout spells out, each with its own settings.

Legend: none; this file moves settings, not tensors.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from torch import nn

from .block import Block
from .config import BackboneConfig
from .layout import Layer, parse_layout
from .mixer import Mixer, MixerConfig, Site
from .mlps.listing import MLPS
from .mlps.mlp import MLP
from .parallel import Parallel


def make_more_blocks(config: BackboneConfig, layout: str | None, num_layers: int) -> nn.ModuleList:
    """Make further blocks like a backbone's own, beside its depth.

    `layout` is theirs; None is the backbone's own, from its first layer. A layer that shares its
    block with an earlier one adds none.

    Raises:
        ValueError: on impossible settings, naming the key.
    """
    layout = config.layout if layout is None else layout
    own = replace(config, layout=layout, num_layers=num_layers, overrides={})
    return make_blocks(own)[0]


@dataclass(frozen=True)
class _Place:
    """A layer to be built: what the layout says of it, where it is, what is overridden there."""

    layer: Layer
    index: int
    seen: frozenset[str]
    changes: dict[str, Any]

    @property
    def key(self) -> str:
        return f"backbone.overrides.{self.index}"


def make_blocks(config: BackboneConfig) -> tuple[nn.ModuleList, list[int]]:
    """Make the stored blocks of a backbone, and say which of them stands in each layer.

    Raises:
        ValueError: on impossible settings, naming the key.
    """
    layers = parse_layout(config.layout, config.num_layers, list(config.mixers))
    changes = _overrides(config, layers)
    blocks, order, tagged = nn.ModuleList(), [], {}
    seen: set[str] = set()
    for index, layer in enumerate(layers):
        place = tagged.get(layer.tag)
        if place is None:
            place = len(blocks)
            here = _Place(layer, index, frozenset(seen), changes.get(index, {}))
            blocks.append(_build_block(config, here))
        if layer.tag:
            tagged[layer.tag] = place
        seen.update(name for name, _ in layer.parts)
        order.append(place)
    return blocks, order


def _overrides(config: BackboneConfig, layers: list[Layer]) -> dict[int, dict[str, Any]]:
    """Overrides by layer index; refuses layers that don't exist or don't own their block."""
    found: dict[int, dict[str, Any]] = {}
    firsts = {layer.tag: index for index, layer in reversed(list(enumerate(layers)))}
    for key, changes in config.overrides.items():
        if not str(key).isdecimal() or int(key) >= len(layers):
            raise ValueError(
                f"backbone.overrides.{key} is no layer: name one of 0 to {len(layers) - 1}"
            )
        tag = layers[int(key)].tag
        if tag and firsts[tag] != int(key):
            raise ValueError(
                f"backbone.overrides.{key}: layer {key} shares its block (@{tag}): override layer "
                f"{firsts[tag]}, which owns it"
            )
        found[int(key)] = dict(changes)
    return found


def _build_block(config: BackboneConfig, place: _Place) -> Block:
    mlp = _build_mlp(config, place)
    changes = {name: value for name, value in place.changes.items() if name != "mlp"}
    _check_changes(config, place, changes)
    mixers = [_build_mixer(config, place, part, changes) for part in place.layer.parts]
    mixer = mixers[0] if len(mixers) == 1 else Parallel(mixers, config.dim)
    canon = (config.canon, config.canon_width)
    return Block(mixer, config.dim, mlp, *canon, norm_place=config.norm_place)


def _check_changes(config: BackboneConfig, place: _Place, changes: dict[str, Any]) -> None:
    """Refuse a setting that no mixer of this layer has, or a value of another type."""
    names = [name for name, _ in place.layer.parts]
    for key, value in changes.items():
        hints = [get_type_hints(type(config.mixers[name])).get(key) for name in names]
        hints = [hint for hint in hints if hint is not None and key not in ("kind", "argument")]
        if not hints:
            raise ValueError(
                f"{place.key}.{key} is no setting of this layer's mixer, {'+'.join(names)}, nor mlp"
            )
        for hint in hints:
            allowed = get_args(hint) or (hint,)
            if type(value) not in allowed and not (type(value) is int and float in allowed):
                said = " or ".join(t.__name__ for t in allowed).replace("NoneType", "null")
                raise ValueError(f"{place.key}.{key}={value} must be {said}")


def _build_mlp(config: BackboneConfig, place: _Place) -> MLP | None:
    kind = place.changes.get("mlp")
    if kind not in (None, "none", *MLPS):
        raise ValueError(f"{place.key}.mlp={kind} is not known: choose none, {', '.join(MLPS)}")
    if place.layer.bare or kind == "none":
        return None
    assert config.mlp_hidden is not None
    chosen = config.mlp if kind is None else MLPS[kind]()
    try:
        return chosen.build(config.dim, config.mlp_hidden)
    except ValueError as error:
        raise ValueError(f"backbone.mlp: {error}") from None


def _build_mixer(
    config: BackboneConfig, place: _Place, part: tuple[str, int | None], changes: dict[str, Any]
) -> Mixer:
    name, argument = part
    settings = config.mixers[name]
    own = {item.name for item in fields(settings)} - {"kind"}
    settings = replace(settings, **{key: x for key, x in changes.items() if key in own})
    site = Site(
        config.dim, config.head_dim, place.index, config.num_layers, name, name not in place.seen
    )
    try:
        return _with_argument(settings, argument).build(site)
    except ValueError as error:
        raise ValueError(f"backbone.mixers.{name}: {error}") from None


def _with_argument(settings: MixerConfig, argument: int | None) -> MixerConfig:
    if argument is None:
        return settings
    if settings.argument is None:
        raise ValueError(
            f"{settings.kind} takes no argument, but the layout gives :{argument}: leave it out"
        )
    return replace(settings, **{settings.argument: argument})
