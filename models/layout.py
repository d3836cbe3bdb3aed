"""The little language of layouts: which mixers stand in which layer.

"3*gdn attn"            gdn, gdn, gdn, attn; a layout shorter than the number of layers repeats
"5*mamba2 swa:256"      a mixer's one argument, here the window
"attn+mamba2"           two mixers side by side in one layer, mixed by learned weights
"5*mamba2 attn@a"       all layers of one tag are one block with one set of weights (Zamba)
"4*mamba2! attn"        a block without a feed-forward network
"""

import re
from dataclasses import dataclass

_TERM = re.compile(r"(?:(\d+)\*)?([^\s*@!]+?)(?:@(\w+))?(!)?")
_PART = re.compile(r"([A-Za-z_]\w*)(?::(\d+))?")


@dataclass(frozen=True)
class Layer:
    """What stands in one layer.

    Attributes:
        parts: names of mixers side by side, each with its argument or None.
        tag: layers with the same tag share one block; empty for a block of its own.
        bare: whether the block has no feed-forward network.
    """

    parts: tuple[tuple[str, int | None], ...]
    tag: str = ""
    bare: bool = False


def parse_layout(layout: str, num_layers: int, names: list[str]) -> list[Layer]:
    """Return what stands in each layer.

    Args:
        layout: terms `[count*]name[:argument][+name[:argument]][@tag][!]`, separated by spaces.
        num_layers: layers to fill; the layout is repeated and cut to this length.
        names: mixers that the backbone defines.

    Raises:
        ValueError: on a term that isn't understood, a name that isn't defined, or a tag that stands
            for two different things.
    """
    unit = [layer for term in layout.split() for layer in _expand(term, layout, names)]
    if not unit:
        raise ValueError('backbone.layout is empty: name at least one mixer, such as "3*gdn attn"')
    if num_layers < 1:
        raise ValueError(f"backbone.num_layers={num_layers} must be at least 1")
    layers = [unit[layer % len(unit)] for layer in range(num_layers)]
    _check_tags(layers, layout)
    return layers


def _expand(term: str, layout: str, names: list[str]) -> list[Layer]:
    match = _TERM.fullmatch(term)
    parts = [_PART.fullmatch(part) for part in match[2].split("+")] if match else []
    if match is None or int(match[1] or 1) == 0 or not all(parts):
        raise ValueError(
            f'backbone.layout="{layout}": "{term}" is not understood; write name or count*name, '
            'such as "3*gdn attn" (also name:argument, one+two, name@tag, name!)'
        )
    named = tuple((part[1], int(part[2]) if part[2] else None) for part in parts if part)
    for name, _ in named:
        if name not in names:
            raise ValueError(
                f'backbone.layout="{layout}": no mixer is called "{name}" here; backbone.mixers '
                f"defines {', '.join(sorted(names)) or 'none'}"
            )
    return [Layer(named, match[3] or "", bool(match[4]))] * int(match[1] or 1)


def _check_tags(layers: list[Layer], layout: str) -> None:
    by_tag: dict[str, Layer] = {}
    for layer in layers:
        if layer.tag and by_tag.setdefault(layer.tag, layer) != layer:
            raise ValueError(
                f'backbone.layout="{layout}": layers tagged @{layer.tag} are one block, so they '
                "must name the same mixers: use another tag"
            )
