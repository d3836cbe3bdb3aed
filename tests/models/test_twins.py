"""The unlooped twins of looped backbones match what they say, within 2%."""

from dataclasses import replace

import pytest

from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.sizing import count_parameters, resolve
from models.twins import TOLERANCE, training_flops, twin_of
from tests.models.cases import VOCABULARY, backbone_config, build_backbone

LOOPED: dict[str, BackboneConfig] = {
    "all": backbone_config("attn", 2, depth=LoopedDepthConfig(loops=3)),
    "hybrid with a core": backbone_config(
        "gdn attn", 4, depth=LoopedDepthConfig(prelude=1, coda=1, loops=3, injection="concat")
    ),
    "window": backbone_config("mamba2", 3, depth=LoopedDepthConfig(loops=6, gradient_loops=4)),
    "relaxed": backbone_config("attn gdn", 2, depth=LoopedDepthConfig(loops=2, relaxation="lora")),
    "sequence": backbone_config(
        "attn gdn", 2, depth=LoopedDepthConfig(loops=2, order="sequence", injection="none")
    ),
    "shared": backbone_config("attn@a mamba2! attn@a", 3, depth=LoopedDepthConfig(loops=2)),
}


def wide(case: str) -> BackboneConfig:
    """Wide enough that widths in steps of one can match."""
    return replace(LOOPED[case], dim=32, mlp_hidden=96)


@pytest.mark.parametrize("case", LOOPED)
def test_a_params_twin_has_as_many_parameters(case: str) -> None:
    twin = twin_of(wide(case), "params")
    assert twin.depth.kind == "fixed" and twin.num_layers == wide(case).num_layers
    assert count_parameters(twin) == pytest.approx(count_parameters(wide(case)), rel=TOLERANCE)


@pytest.mark.parametrize("case", LOOPED)
def test_a_depth_twin_has_a_block_for_every_call(case: str) -> None:
    original, twin = Backbone(wide(case)), Backbone(twin_of(wide(case), "depth"))
    loops = original.depth.default_loops
    calls = [type(original.depth.block(c).mixer) for c in original.depth.calls(loops)]
    assert [type(twin.depth.block(c).mixer) for c in twin.depth.calls(1)] == calls
    assert twin.block_calls_per_position() == original.block_calls_per_position()
    assert twin.num_parameters > original.num_parameters


@pytest.mark.parametrize("case", LOOPED)
def test_a_flops_twin_costs_as_much_to_train(case: str) -> None:
    original, twin = Backbone(wide(case)), Backbone(twin_of(wide(case), "flops"))
    assert training_flops(twin) == pytest.approx(training_flops(original), rel=TOLERANCE)


def test_a_flops_twin_is_matched_at_the_length_asked_for() -> None:
    """A loop without a gradient costs attention once, its twin three times: length matters."""
    config = replace(wide("all"), depth=LoopedDepthConfig(loops=4, gradient_loops=1))
    original, twin = Backbone(config), Backbone(twin_of(config, "flops", length=32))
    assert training_flops(twin, 32) == pytest.approx(training_flops(original, 32), rel=TOLERANCE)
    assert training_flops(twin, 512) > 1.1 * training_flops(original, 512)


def test_settings_of_a_layer_follow_it() -> None:
    config = replace(LOOPED["all"], overrides={"1": {"window": 4}})
    twin = twin_of(config, "depth")
    assert twin.overrides == {str(place): {"window": 4} for place in (1, 3, 5)}


def test_resolving_puts_the_twin_in_place() -> None:
    config = replace(wide("all"), twin="params", vocab_size=0)
    made = resolve(config, VOCABULARY)
    assert made.name == "backbone_params_twin" and made.twin == "none"
    assert resolve(made, VOCABULARY) == made
    build_backbone(made)


@pytest.mark.parametrize(
    ("config", "match", "message"),
    [
        (backbone_config("attn"), "params", "depth=fixed loops nothing: choose a looped depth"),
        (LOOPED["all"], "weight", "backbone.twin=weight is not known: choose none, params"),
        (
            replace(
                LOOPED["all"], mlp_hidden=1, depth=LoopedDepthConfig(loops=6, gradient_loops=1)
            ),
            "flops",
            "is .*% off what .* flops ask for, over 2%: choose another twin",
        ),
    ],
)
def test_what_can_not_be_matched_is_refused(
    config: BackboneConfig, match: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        twin_of(config, match)
