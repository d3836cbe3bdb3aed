"""The one list of mixers: a new mixer is one file beside this one and one line here."""

from ..mixer import MixerConfig
from .attention import AttentionConfig, SlidingWindowConfig
from .delta_product import GatedDeltaProductConfig
from .deltanet import DeltaNetConfig
from .gated_delta import GatedDeltaNetConfig
from .gated_delta2 import GatedDeltaNet2Config
from .gla import GatedLinearAttentionConfig
from .hgrn2 import HGRN2Config
from .kda import KimiDeltaConfig
from .lightning import LightningConfig
from .mamba2 import Mamba2Config
from .mamba3 import Mamba3Config
from .mla import LatentAttentionConfig
from .moba import MixtureOfBlocksConfig
from .mom import MixtureOfMemoriesConfig
from .nsa import NativeSparseConfig
from .retnet import RetNetConfig
from .rwkv7 import RWKV7Config

MIXERS: dict[str, type[MixerConfig]] = {
    "attn": AttentionConfig,
    "delta_product": GatedDeltaProductConfig,
    "deltanet": DeltaNetConfig,
    "gdn": GatedDeltaNetConfig,
    "gdn2": GatedDeltaNet2Config,
    "gla": GatedLinearAttentionConfig,
    "hgrn2": HGRN2Config,
    "kda": KimiDeltaConfig,
    "lightning": LightningConfig,
    "mamba2": Mamba2Config,
    "mamba3": Mamba3Config,
    "mla": LatentAttentionConfig,
    "moba": MixtureOfBlocksConfig,
    "mom": MixtureOfMemoriesConfig,
    "nsa": NativeSparseConfig,
    "retnet": RetNetConfig,
    "rwkv7": RWKV7Config,
    "swa": SlidingWindowConfig,
}
