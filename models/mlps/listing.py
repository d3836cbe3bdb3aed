"""The one list of feed-forward networks: a new one is one file beside this and one line here."""

from .mlp import MLPConfig
from .moe import MoEConfig
from .relu2 import ReLU2Config
from .swiglu import SwiGLUConfig

MLPS: dict[str, type[MLPConfig]] = {
    "moe": MoEConfig,
    "relu2": ReLU2Config,
    "swiglu": SwiGLUConfig,
}
