"""The language of layouts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layout import parse_layout

REPEATABLE = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NAMES = ["attn", "gdn", "mamba2"]
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
    assert layers == [unit[layer % len(unit)] for layer in range(num_layers)]


def test_three_to_one() -> None:
    expected = ["gdn", "gdn", "gdn", "attn", "gdn", "gdn"]
    assert parse_layout("3*gdn attn", 6, NAMES) == expected


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
