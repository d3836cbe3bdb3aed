"""How often a looped group runs in a training step: fixed, or drawn.

A draw is a pure function of its key, so that it is equal on all processes and after a resume.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CountLaw(ABC):
    """The distribution of a count.

    Attributes:
        mean: what the count is about; a curriculum moves it.
        spread: sigma of a lognormal.
        least: least count.
        most: most loops; None is no limit.
    """

    mean: float
    spread: float = 0.5
    least: int = 1
    most: int | None = None

    def draw(self, key: int) -> int:
        """Draw a count between `least` and `most`."""
        generator = torch.Generator().manual_seed(key)
        count = max(self.least, self.sample(generator))
        return count if self.most is None else min(count, self.most)

    @abstractmethod
    def sample(self, generator: torch.Generator) -> int:
        """Draw a count, whatever the limits."""

    def _lognormal(self, generator: torch.Generator) -> float:
        """A lognormal number of this mean: `exp(log mean - sigma^2 / 2 + sigma z)`."""
        normal = float(torch.randn((), generator=generator, dtype=torch.float64))
        return math.exp(math.log(self.mean) - self.spread**2 / 2 + self.spread * normal)


class FixedLaw(CountLaw):
    """Always the mean, rounded."""

    def sample(self, generator: torch.Generator) -> int:
        """Return the mean."""
        return round(self.mean)


class UniformLaw(CountLaw):
    """Every count from the least to the most equally often; `2 mean - least` where none is set."""

    def sample(self, generator: torch.Generator) -> int:
        """Draw uniformly."""
        most = max(self.least, round(2 * self.mean - self.least))
        if self.most is not None:
            most = self.most
        return int(torch.randint(self.least, most + 1, (), generator=generator))


class PoissonLaw(CountLaw):
    """Poisson (Parcae, arXiv 2604.12946)."""

    def sample(self, generator: torch.Generator) -> int:
        """Draw from Poisson(mean)."""
        return poisson(self.mean, generator)


class LognormalPoissonLaw(CountLaw):
    """Poisson of a lognormal rate, plus one (Huginn, arXiv 2502.05171, section 3.3)."""

    def sample(self, generator: torch.Generator) -> int:
        """Draw the rate, then the count; its mean is `mean + 1`."""
        return poisson(self._lognormal(generator), generator) + 1


class LognormalLaw(CountLaw):
    """A rounded lognormal number (STARS, arXiv 2605.26733)."""

    def sample(self, generator: torch.Generator) -> int:
        """Draw it."""
        return round(self._lognormal(generator))


LAWS: dict[str, type[CountLaw]] = {
    "fixed": FixedLaw,
    "uniform": UniformLaw,
    "poisson": PoissonLaw,
    "lognormal_poisson": LognormalPoissonLaw,
    "lognormal": LognormalLaw,
}


def poisson(rate: float, generator: torch.Generator) -> int:
    """Draw a Poisson number."""
    rates = torch.full((), rate, dtype=torch.float64)
    return int(torch.poisson(rates, generator=generator))


CURRICULA = ("none", "linear", "root")


def grown(mean: float, curriculum: str, progress: float) -> float:
    """The mean on its way from one loop: `linear`, or `root`, `1 - sqrt(1 - progress)`.

    The second is the slower start of the retrofits (arXiv 2511.07384).
    """
    progress = min(1.0, progress)
    if curriculum == "none":
        return mean
    share = progress if curriculum == "linear" else 1 - math.sqrt(1 - progress)
    return 1 + (mean - 1) * share
