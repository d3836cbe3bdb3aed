"""The one list of mixers: a new mixer is one file beside this one and one line here."""

from ..mixer import MixerConfig
from .attention import AttentionConfig
from .gated_delta import GatedDeltaNetConfig
from .mamba2 import Mamba2Config

MIXERS: dict[str, type[MixerConfig]] = {
    "attn": AttentionConfig,
    "gdn": GatedDeltaNetConfig,
    "mamba2": Mamba2Config,
}
