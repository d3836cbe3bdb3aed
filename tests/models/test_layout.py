"""The language of layouts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbone import Backbone
from models.block import Block
from models.layout import Layer, parse_layout
from models.mixers.attention import Attention
from models.mlps.moe import MoEConfig
from models.mlps.relu2 import ReLU2
from models.parallel import Parallel
from tests.models.cases import backbone_config, build_backbone

REPEATABLE = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NAMES = ["attn", "gdn", "mamba2"]


def plain(name: str) -> Layer:
    return Layer(((name, None),))


terms = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=5
)


@REPEATABLE
@given(terms=terms, num_layers=st.integers(1, 40), space=st.sampled_from([" ", "  ", " \n"]))
def test_layouts_expand_and_repeat(
    terms: list[tuple[int, str, bool]], num_layers: int, space: str
) -> None:
    """A lone name may stand with or without `1*`; any white space separates."""
    words = [name if count == 1 and bare else f"{count}*{name}" for count, name, bare in terms]
    unit = [name for count, name, _ in terms for _ in range(count)]
    layers = parse_layout(space.join(words), num_layers, NAMES)
    assert len(layers) == num_layers
    assert layers == [plain(unit[layer % len(unit)]) for layer in range(num_layers)]


def test_three_to_one() -> None:
    expected = ["gdn", "gdn", "gdn", "attn", "gdn", "gdn"]
    assert parse_layout("3*gdn attn", 6, NAMES) == [plain(name) for name in expected]


@pytest.mark.parametrize(
    ("term", "layer"),
    [
        ("attn:256", Layer((("attn", 256),))),
        ("attn+mamba2", Layer((("attn", None), ("mamba2", None)))),
        ("attn:8+gdn@a!", Layer((("attn", 8), ("gdn", None)), "a", True)),
        ("gdn@one", Layer((("gdn", None),), "one")),
        ("2*gdn!", Layer((("gdn", None),), "", True)),
    ],
)
def test_terms_may_say_more(term: str, layer: Layer) -> None:
    assert parse_layout(term, 2, NAMES) == [layer, layer]


def test_a_tag_stands_for_one_thing() -> None:
    with pytest.raises(ValueError, match="layers tagged @a are one block"):
        parse_layout("gdn@a attn@a", 2, NAMES)


def blocks_of(layout: str, num_layers: int, **changes: Any) -> list[Block]:
    backbone = build_backbone(backbone_config(layout, num_layers, **changes))
    return [backbone.depth.block(layer) for layer in range(num_layers)]


def test_an_argument_is_the_mixer_s_own() -> None:
    windows = []
    for block in blocks_of("swa:7 swa attn:3", 3):
        assert isinstance(block.mixer, Attention)
        windows.append(block.mixer.config.window)
    assert windows == [7, 64, 3]
    with pytest.raises(ValueError, match=r"backbone.mixers.gdn: gdn takes no argument, .* :7"):
        Backbone(backbone_config("gdn:7"))


def test_tagged_layers_are_one_block_with_states_of_their_own() -> None:
    config = backbone_config("gdn attn@a", 6)
    backbone = build_backbone(config)
    assert backbone.depth.order == [0, 1, 2, 1, 3, 1]
    assert len(backbone.depth.blocks) == 4
    state = backbone.init_state(1, 8)
    assert len({id(call) for call in state.calls}) == 6


def test_a_bare_layer_has_no_feed_forward_network() -> None:
    bare, full = blocks_of("gdn! gdn", 2)
    assert bare.mlp is None and full.mlp is not None


def test_parallel_heads_start_with_equal_weights() -> None:
    config = backbone_config("attn+gdn", 1)
    block = Backbone(config).depth.block(0)
    assert isinstance(block.mixer, Parallel)
    assert [type(mixer).__name__ for mixer in block.mixer.mixers] == ["Attention", "GatedDeltaNet"]
    assert all((weight == 1).all() for weight in block.mixer.mix)


def test_overrides_change_one_layer() -> None:
    blocks = blocks_of(
        "attn", 3, overrides={"1": {"window": 5, "mlp": "relu2"}, "2": {"mlp": "none"}}
    )
    windows = [block.mixer.config.window for block in blocks]  # pyright: ignore
    assert windows == [None, 5, None]
    assert isinstance(blocks[1].mlp, ReLU2) and blocks[2].mlp is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"3": {}}, "backbone.overrides.3 is no layer: name one of 0 to 2"),
        ({"x": {}}, "backbone.overrides.x is no layer"),
        ({"0": {"windo": 3}}, "backbone.overrides.0.windo is no setting of this layer's mixer"),
        ({"0": {"kind": "gdn"}}, "backbone.overrides.0.kind is no setting"),
        ({"0": {"window": "wide"}}, "backbone.overrides.0.window=wide must be int or null"),
        ({"0": {"mlp": "wide"}}, "backbone.overrides.0.mlp=wide is not known: choose none, moe"),
        ({"2": {"window": 3}}, "layer 2 shares its block .@a.: override layer 1"),
    ],
)
def test_impossible_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Backbone(backbone_config("attn attn@a attn@a", 3, overrides=overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canon": "AB"}, "backbone.canon=AB must be some of the letters A, C and D"),
        ({"canon": "AA"}, "backbone.canon=AA must be some of the letters"),
        ({"canon": "A", "canon_width": 1}, "backbone.canon_width=1 must be at least 2"),
        ({"canon": "D", "mlp": MoEConfig()}, "D stands inside a dense feed-forward network"),
        ({"mlp": MoEConfig(top_k=9)}, "backbone.mlp: top_k=9 must lie between 1 and the 8"),
        ({"mlp": MoEConfig(balance_rate=-1)}, "backbone.mlp: balance_rate=-1 must be at least 0"),
        ({"mlp": MoEConfig(expert_hidden=0)}, "backbone.mlp: expert_hidden=0 must be at least 1"),
    ],
)
def test_impossible_blocks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Backbone(backbone_config("attn", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "term",
    [
        "*gdn",
        "3*",
        "gdn*3",
        "3gdn",
        "0*gdn",
        "00*gdn",
        "-1*gdn",
        "3",
        "g-dn",
        "2*3*gdn",
        "1.5*gdn",
    ],
)
def test_a_term_that_is_not_understood_is_named(term: str) -> None:
    with pytest.raises(ValueError, match=r"not understood; write name or count.name") as error:
        parse_layout(f"attn {term}", 4, NAMES)
    assert f'"{term}"' in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mixer_that_is_not_defined_is_named() -> None:
    with pytest.raises(ValueError, match=r'no mixer is called "atn" here; .* attn, gdn, mamba2'):
        parse_layout("gdn 2*atn", 4, NAMES)
    with pytest.raises(ValueError, match="defines none"):
        parse_layout("attn", 4, [])


@pytest.mark.parametrize("layout", ["", "  "])
def test_an_empty_layout_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match=r"backbone\.layout is empty"):
        parse_layout(layout, 4, NAMES)


@pytest.mark.parametrize("num_layers", [0, -2])
def test_no_layers_are_refused(num_layers: int) -> None:
    with pytest.raises(ValueError, match=f"backbone.num_layers={num_layers} must be at least 1"):
        parse_layout("attn", num_layers, NAMES)
