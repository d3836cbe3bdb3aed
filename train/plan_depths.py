"""Tell what deep backbones, many rows and long contexts hold from small ones.

Layers repeat, and so do rows: in each phase of a step what is held grows by the same bytes with
every further group of layers (one repetition of the layout), and with every further row once the
loss reads out more than one chunk. So a step is run at two depths and at two numbers of rows, and
the rest is a straight line. Recurrent mixers run ever more operators over longer contexts; where
all that is held grows in proportion, two short contexts tell of a long one.

Where that isn't so (single layers with settings of their own, shared blocks, depths other than
fixed and looped; attention with masks, windows), the step is run as it is.
"""

from collections.abc import Callable
from dataclasses import replace

from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.layout import parse_layout
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig

from .plan_cache import remembered
from .plan_step import Held, StepAsked, held_by_phases

Phases = dict[str, Held]


def held_at(asked: StepAsked) -> Phases:
    """Return bytes by part in each phase of a step; see `plan_step.held_by_phases`.

    Raises:
        NotPredicted: what the step runs depends on what is read.
    """
    short, chunk = grows_with_context(asked), asked.objective.chunk_size
    if asked.rows * asked.context <= chunk:
        return _at_context(asked)
    few = 1 + chunk // (SHORT[0] if short else asked.context)
    if asked.rows <= few + 1 and not short:
        return _at_context(asked)
    return _line(few, few + 1, asked.rows, lambda rows: _at_context(replace(asked, rows=rows)))


SHORT = (256, 512)
"""Contexts that tell about long ones: whole chunks of every recurrent mixer."""


def grows_with_context(asked: StepAsked) -> bool:
    """Whether short contexts tell about this one, at less expense."""
    mixers = [type(asked.backbone.mixers[name]) for name in _names(asked.backbone)]
    plain = asked.flash_attn and asked.cuda and asked.bf16
    allowed = (GatedDeltaNetConfig, AttentionConfig) if plain else (GatedDeltaNetConfig,)
    return (
        asked.context > SHORT[1]
        and asked.context % SHORT[0] == 0
        and GatedDeltaNetConfig in mixers
        and all(kind in allowed for kind in mixers)
    )


def _names(config: BackboneConfig) -> set[str]:
    layers = parse_layout(config.layout, config.num_layers, list(config.mixers))
    return {name for layer in layers for name, _ in layer.parts}


def _at_context(asked: StepAsked) -> Phases:
    if not grows_with_context(asked):
        return _at_depth(asked)
    return _line(*SHORT, asked.context, lambda context: _at_depth(replace(asked, context=context)))


def _at_depth(asked: StepAsked) -> Phases:
    depths = shallow(asked.backbone)
    if depths is None:
        return _run(asked)

    def at(layers: int) -> Phases:
        return _run(replace(asked, backbone=replace(asked.backbone, num_layers=layers)))

    return _line(*depths, asked.backbone.num_layers, at)


def shallow(config: BackboneConfig) -> tuple[int, int] | None:
    """Return two depths that tell about this one; None where they would save nothing, or don't."""
    depth = config.depth
    around = depth.prelude + depth.coda if isinstance(depth, LoopedDepthConfig) else 0
    if depth.kind not in ("fixed", "looped") or config.latent.kind != "none" or config.overrides:
        return None
    if "@" in config.layout:
        return None
    layers = parse_layout(config.layout, config.num_layers, list(config.mixers))
    period = next(n for n in range(1, len(layers) + 1) if layers[n:] == layers[:-n])
    first = around + 2 + (config.num_layers - around - 2) % period
    found = (first, first + period)
    return found if found[1] < config.num_layers else None


def _line(one: int, two: int, at: int, run: Callable[[int], Phases]) -> Phases:
    """Go on from two runs in a straight line, part by part."""
    low, high = run(one), run(two)
    steps = (at - one) / (two - one)
    return {
        phase: {
            part: low[phase].get(part, 0.0)
            + steps * (high[phase].get(part, 0.0) - low[phase].get(part, 0.0))
            for part in {**low[phase], **high[phase]}
        }
        for phase in low
    }


_run = remembered(held_by_phases)
