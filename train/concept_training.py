"""Train a teacher's autoencoder on the hidden states of its own corpus.

Legend: N positions, D width, C concepts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.corpus import Corpus
from data.module import CorpusModule
from models.cost import linear_flops

from .autoencoder import Autoencoder, autoencoder_loss
from .concepts_config import ConceptsConfig
from .teacher import Teacher

COOLING = 0.2
"""Share of the steps over which the learning rate falls to zero."""


@dataclass(frozen=True)
class Quality:
    """How well an autoencoder stands for hidden states that it wasn't trained on.

    Attributes:
        explained_variance: 1 - sum |h - h'|^2 / sum |h - mean h|^2.
        dead_share: share of the concepts that are active nowhere.
    """

    explained_variance: float
    dead_share: float


def fit_autoencoder(
    teacher: Teacher, corpus: Corpus, config: ConceptsConfig, seed: int, device: str
) -> int:
    """Train the teacher's autoencoder; return the positions that it saw.

    What is read is a pure function of the seed and the step.
    """
    autoencoder = teacher.autoencoder
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=config.lr)
    silent_C = torch.zeros(config.num_concepts, dtype=torch.long, device=device)
    positions = 0
    for step, hidden_ND in enumerate(_training_states(teacher, corpus, config, seed, device)):
        if not step:
            autoencoder.begin(hidden_ND, generator)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (config.steps - step) / (COOLING * config.steps))
        active_NC = train_step(autoencoder, optimizer, hidden_ND, silent_C, config)
        silent_C = torch.where((active_NC > 0).any(dim=0), 0, silent_C + 1)
        positions += len(hidden_ND)
    return positions


def train_step(
    autoencoder: Autoencoder,
    optimizer: torch.optim.Optimizer,
    hidden_ND: Tensor,
    silent_C: Tensor,
    config: ConceptsConfig,
) -> Tensor:
    """Take one step; return the activations. `silent_C` counts steps without being active."""
    made = autoencoder(hidden_ND)
    loss = autoencoder_loss(autoencoder, made, silent_C >= config.dead_after, config.auxiliary)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    autoencoder.normalise()
    return made.active_NC.detach()


def _training_states(
    teacher: Teacher, corpus: Corpus, config: ConceptsConfig, seed: int, device: str
) -> Iterator[Tensor]:
    def place(step: int) -> tuple[int, int, int]:
        return 0, step, config.steps

    data = CorpusModule(corpus, config.rows, 0, seed, place, config.steps)
    for batch in data.steps_from(0):
        batch = batch.to(device)
        yield teacher.hidden(batch)[batch.segments_BT >= 0].float()


def validation_states(
    teacher: Teacher, corpus: Corpus, config: ConceptsConfig, device: str
) -> list[Tensor]:
    """Return hidden states `[N, D]` of held-out documents; of the first ones read, if none are."""

    def place(step: int) -> tuple[int, int, int]:
        return 0, step, 1

    data = CorpusModule(corpus, config.rows, config.validation_rows, 0, place, 1)
    batches = data.validation_batches() or list(data.steps_from(0))
    moved = [batch.to(device) for batch in batches]
    return [teacher.hidden(batch)[batch.segments_BT >= 0].float() for batch in moved]


@torch.no_grad()
def measure(autoencoder: Autoencoder, states: list[Tensor]) -> Quality:
    """Measure an autoencoder on hidden states `[N, D]`."""
    mean_D = torch.cat(states).mean(dim=0)
    left, spread = 0.0, 0.0
    seen_C = torch.zeros_like(autoencoder.bias_C, dtype=torch.bool)
    for hidden_ND in states:
        active_NC = autoencoder.encode(hidden_ND)
        left += float((hidden_ND - autoencoder.decode(active_NC)).double().square().sum())
        spread += float((hidden_ND - mean_D).double().square().sum())
        seen_C |= (active_NC > 0).any(dim=0)
    return Quality(1 - left / max(spread, 1e-300), 1 - float(seen_C.double().mean()))


def autoencoder_flops(teacher: Teacher, config: ConceptsConfig, lengths: list[int]) -> float:
    """FLOPs of training on these documents: the teacher's passes, and three of encode and decode.

    Both are counted as products of all concepts, since all scores are computed; the sums run over
    the active ones alone.
    """
    dim = teacher.backbone.config.dim
    once = linear_flops(dim, config.num_concepts) + linear_flops(dim, config.active)
    passes = sum(teacher.backbone.prefill_cost(length, readouts=0).flops for length in lengths)
    return passes + 3 * once * sum(lengths)
