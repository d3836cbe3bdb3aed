"""The little language of layouts: which mixer stands in which layer.

`"3*gdn attn"` means gdn, gdn, gdn, attn; a layout shorter than the number of layers is repeated.
"""

import re

_TERM = re.compile(r"(?:(\d+)\*)?([A-Za-z_][A-Za-z0-9_]*)")


def parse_layout(layout: str, num_layers: int, names: list[str]) -> list[str]:
    """Return the mixer name of each layer.

    Args:
        layout: terms `name` or `count*name`, separated by spaces.
        num_layers: layers to fill; the layout is repeated and cut to this length.
        names: mixers that the backbone defines.

    Raises:
        ValueError: on a term that isn't understood, or a name that isn't defined.
    """
    unit = [name for term in layout.split() for name in _expand(term, layout, names)]
    if not unit:
        raise ValueError('backbone.layout is empty: name at least one mixer, such as "3*gdn attn"')
    if num_layers < 1:
        raise ValueError(f"backbone.num_layers={num_layers} must be at least 1")
    return [unit[layer % len(unit)] for layer in range(num_layers)]


def _expand(term: str, layout: str, names: list[str]) -> list[str]:
    match = _TERM.fullmatch(term)
    if match is None or int(match[1] or 1) == 0:
        raise ValueError(
            f'backbone.layout="{layout}": "{term}" is not understood; write name or count*name, '
            'such as "3*gdn attn"'
        )
    count, name = int(match[1] or 1), match[2]
    if name not in names:
        raise ValueError(
            f'backbone.layout="{layout}": no mixer is called "{name}" here; backbone.mixers '
            f"defines {', '.join(sorted(names)) or 'none'}"
        )
    return [name] * count
