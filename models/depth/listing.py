"""The one list of depths: a new depth is one file beside this one and one line here."""

from .depth import DepthConfig
from .fixed import FixedDepthConfig
from .looped import LoopedDepthConfig
from .nested import NestedDepthConfig

DEPTHS: dict[str, type[DepthConfig]] = {
    "fixed": FixedDepthConfig,
    "looped": LoopedDepthConfig,
    "nested": NestedDepthConfig,
}
