"""The unlooped backbone that a looped one is to be compared with.

    params   the same layers, each run once, as many unique parameters
    depth    a layer of its own for every call: the same effective depth, so many more parameters
    flops    the same, with a feed-forward width at which a training step costs the same

What the loops add (injections, relaxations) is matched by the feed-forward width.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from .backbone import Backbone
from .config import BackboneConfig
from .depth.fixed import FixedDepthConfig
from .layout import Layer, parse_layout

TWINS = ("none", "params", "flops", "depth")
TOLERANCE = 0.02
"""Largest relative distance between a backbone and its twin."""
LENGTH = 256
"""Tokens of the document that training FLOPs are compared on, unless others are asked for."""


def twin_of(config: BackboneConfig, match: str, length: int = LENGTH) -> BackboneConfig:
    """Return the twin of a resolved backbone; FLOPs are matched on documents of `length` tokens.

    Raises:
        ValueError: where there is nothing to match, or no width comes within 2%.
    """
    if match not in TWINS[1:]:
        raise ValueError(f"backbone.twin={match} is not known: choose {', '.join(TWINS)}")
    if isinstance(config.depth, FixedDepthConfig):
        raise ValueError(
            f"backbone.twin={match} is the unlooped model beside a looped one, but depth="
            f"{config.depth.kind} loops nothing: choose a looped depth, or twin=none"
        )
    original = _built(config)
    order = list(range(config.num_layers))
    if match != "params":
        order = original.depth.calls(original.depth.default_loops)
    twin = _unlooped(config, order, match)
    if match == "depth":
        return twin
    size = _parameters if match == "params" else partial(training_flops, length=length)
    return _matched(twin, size, size(original), match)


def training_flops(backbone: Backbone, length: int = LENGTH) -> float:
    """FLOPs of training on one document: three forward passes but where no gradient is asked."""
    loops = backbone.depth.default_loops
    forward = backbone.prefill_cost(length, loops, readouts=length).flops
    once = 2 * backbone.forward_only_cost(length, loops).flops
    return 3 * forward - once + backbone.fitting(length, loops).cost.flops


def _parameters(backbone: Backbone) -> float:
    return backbone.num_parameters


def _built(config: BackboneConfig) -> Backbone:
    with torch.device("meta"):
        return Backbone(config)


def _unlooped(config: BackboneConfig, order: list[int], match: str) -> BackboneConfig:
    """Give every call of a layer a layer of its own."""
    layers = parse_layout(config.layout, config.num_layers, list(config.mixers))
    seen: Counter[int] = Counter()
    terms, overrides = [], {}
    for place, layer in enumerate(order):
        terms.append(_term(layers[layer], seen[layer]))
        seen[layer] += 1
        if str(layer) in config.overrides:
            overrides[str(place)] = config.overrides[str(layer)]
    return replace(
        config,
        name=f"{config.name}_{match}_twin",
        num_layers=len(order),
        layout=" ".join(terms),
        overrides=overrides,
        depth=FixedDepthConfig(),
        twin="none",
    )


def _term(layer: Layer, copy: int) -> str:
    """Write a layer; blocks that a loop shared with itself are told apart."""
    parts = "+".join(name if arg is None else f"{name}:{arg}" for name, arg in layer.parts)
    tag = f"@{layer.tag}_{copy}" if layer.tag and copy else f"@{layer.tag}" if layer.tag else ""
    return parts + tag + ("!" if layer.bare else "")


def _matched(
    twin: BackboneConfig, size: Callable[[Backbone], float], target: float, match: str
) -> BackboneConfig:
    """Choose the feed-forward width, in which sizes are affine, that comes nearest the target."""
    one, two = (size(_built(replace(twin, mlp_hidden=width))) for width in (1, 2))
    width = max(1, round((target - one) / (two - one)) + 1) if two > one else 1
    made = replace(twin, mlp_hidden=width)
    apart = abs(size(_built(made)) / target - 1)
    if apart > TOLERANCE:
        raise ValueError(
            f"backbone.twin={match}: the nearest feed-forward width of {twin.num_layers} layers is "
            f"{apart:.1%} off what {target:,.0f} {match} ask for, over {TOLERANCE:.0%}: choose "
            "another twin, or a larger backbone.dim"
        )
    return made
