"""The one list of latent schemes: a new one is one file beside this one and one line here."""

from .latent import LatentConfig
from .none import NoLatentConfig

LATENTS: dict[str, type[LatentConfig]] = {"none": NoLatentConfig}
