"""The one list of latent schemes: a new one is one file beside this one and one line here."""

from .chunk import ChunkConfig
from .concept import ConceptConfig
from .distilled import DistilledConfig
from .feedback import FeedbackConfig
from .filler import FillerConfig
from .latent import LatentConfig
from .lotus import LotusConfig
from .none import NoLatentConfig
from .pause import PauseConfig
from .ponder import PonderConfig
from .ponder2 import Ponder2Config
from .soft import SoftConfig
from .vector import VectorConfig

LATENTS: dict[str, type[LatentConfig]] = {
    "none": NoLatentConfig,
    "pause": PauseConfig,
    "filler": FillerConfig,
    "feedback": FeedbackConfig,
    "distilled": DistilledConfig,
    "soft": SoftConfig,
    "lotus": LotusConfig,
    "ponder": PonderConfig,
    "ponder2": Ponder2Config,
    "vector": VectorConfig,
    "chunk": ChunkConfig,
    "concept": ConceptConfig,
}
