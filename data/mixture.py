"""Which source each document of a corpus comes from: shares, phases, and sources that run out.

Document i of a split draws its source with block i of a stream that is keyed by (seed, split), in
the shares of the phase that i lies in. A source with a cap on its epochs is dropped from the
document after its last one on, and the others share what it leaves. So the whole choice is one pass
over the numbers, the same anywhere, and a shard needs to know only how it stands at its start.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .config import DataConfig
from .order import permuted
from .source_config import SourceConfig
from .split import splittable
from .task_list import find_task


@dataclass(frozen=True)
class Drawable:
    """A source as one phase of a split sees it.

    Its id, name and settings, the levels that it may draw, and its share of the documents relative
    to the other sources.
    """

    number: int
    name: str
    config: SourceConfig
    levels: list[int]
    share: float


@dataclass(frozen=True)
class Stretch:
    """Consecutive documents of a split that are drawn from the same sources in the same shares."""

    numbers: range
    sources: tuple[Drawable, ...]


@dataclass(frozen=True)
class Part:
    """The documents of one shard: stretches, and how many of each source were drawn before."""

    numbers: range
    stretches: tuple[Stretch, ...]
    before: Mapping[str, int]


@dataclass(frozen=True)
class Pick:
    """Where one document comes from: its source, its level, and which of the source's it is.

    The level is 0 for a source of text, whose records have their own. `ordinal` counts the source's
    documents in the split, where that matters: for texts and sources with a cap; else it is 0.
    """

    number: int
    source: Drawable
    level: int
    ordinal: int


MeanLength = Callable[[Drawable], float]
"""Mean tokens of a source's documents at its levels."""


def drawable_sources(
    config: DataConfig, split: str, phase: int = 0, mean_length: MeanLength | None = None
) -> list[Drawable]:
    """Sources that give documents to a split, in a phase of it.

    Outside `train` there is one phase, with each source's own levels and weight, and only levels
    that are splittable. `mean_length` is needed where the corpus is weighed by tokens.
    """
    starts = phase_starts(config) if split == "train" else [1.0]
    start = starts[phase]
    sources = []
    for number, (name, source) in enumerate(config.named_sources()):
        levels, weight = source.at(start)
        if split != "train" and not source.text:
            levels = [level for level in levels if splittable(source.task, level)]
        if weight > 0 and (levels or source.text):
            share = weight if config.temperature == 1 else weight ** (1 / config.temperature)
            drawable = Drawable(number, name, source, levels, share)
            if mean_length is not None:
                drawable = replace(drawable, share=share / mean_length(drawable))
            sources.append(drawable)
    return sources


def phase_starts(config: DataConfig) -> list[float]:
    """Where phases begin, as shares of training: at 0, then at each `until` of a source."""
    untils = {step.until for source in config.sources.values() for step in source.schedule}
    return [0.0, *sorted(until for until in untils if until < 1)]


def phase_documents(config: DataConfig, mean_length: MeanLength) -> list[range]:
    """The training documents of each phase, so many that its tokens are its share of training.

    Then training that goes through the corpus once reads each document once, whatever its phase.
    """
    starts = phase_starts(config)
    spans = np.diff([*starts, 1.0])
    if len(starts) == 1:
        return [range(config.num_documents)]
    lengths = [
        _mean_of_mixture(drawable_sources(config, "train", phase), config, mean_length)
        for phase in range(len(starts))
    ]
    documents = np.cumsum(spans / lengths)
    ends = np.rint(documents / documents[-1] * config.num_documents).astype(int).tolist()
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _mean_of_mixture(sources: list[Drawable], config: DataConfig, mean_length: MeanLength) -> float:
    """Mean tokens of a document of these sources."""
    lengths = np.array([mean_length(source) for source in sources])
    shares = np.array([source.share for source in sources])
    if config.weigh_by == "tokens":
        shares = shares / lengths
    return float((shares * lengths).sum() / shares.sum())


def capacity(source: SourceConfig, split: str, num_records: int | None) -> float:
    """How many documents a source gives to a split before its epochs are used up.

    Validation takes no record of a text twice. A generated source is finite where all its levels
    are; its problems are drawn with replacement, so an epoch is as many draws as it has problems.
    """
    if num_records is not None and split != "train":
        return num_records
    if source.max_epochs is None:
        return math.inf
    if num_records is not None:
        return math.floor(source.max_epochs * num_records)
    task = find_task(source.task)
    sizes = [task.num_problems(level) for level in set(source.all_levels)]
    if any(size is None for size in sizes):
        return math.inf
    return math.floor(source.max_epochs * sum(size for size in sizes if size is not None))


def parts(
    numbers: Sequence[range],
    sources: Callable[[int], list[Drawable]],
    phases: Sequence[range],
    capacities: Mapping[str, float],
    split: str,
    seed: int,
) -> list[Part]:
    """What each shard draws from; the list ends early where every source runs out.

    Args:
        numbers: documents of each shard, in order and without gaps; none spans two phases.
        sources: the sources of a phase.
        phases: documents of each phase.
        capacities: documents that a source can give; sources that aren't named never run out.
        split: the split, which with the seed keys the draws.
        seed: of the corpus.
    """
    result: list[Part] = []
    counts = dict.fromkeys(capacities, 0)
    for shard in numbers:
        phase = next(index for index, span in enumerate(phases) if shard.start in span)
        before = dict(counts)
        stretches = _stretches(shard, sources(phase), capacities, counts, split, seed)
        end = stretches[-1].numbers.stop if stretches else shard.start
        if stretches:
            result.append(Part(range(shard.start, end), tuple(stretches), before))
        if end < shard.stop:
            break
    return result


def _stretches(
    shard: range,
    sources: list[Drawable],
    capacities: Mapping[str, float],
    counts: dict[str, int],
    split: str,
    seed: int,
) -> list[Stretch]:
    """Cut a shard where sources run out; `counts` goes on counting documents of each."""
    start, stretches = shard.start, []
    while start < shard.stop:
        left = [s for s in sources if counts.get(s.name, 0) < capacities.get(s.name, math.inf)]
        if not left:
            break
        numbers = range(start, shard.stop)
        if any(source.name in capacities for source in left):
            choices = _choices(left, _uniform(split, seed, numbers)[:, 0])
            numbers = range(start, start + _length(choices, left, capacities, counts))
            for index, source in enumerate(left):
                if source.name in counts:
                    counts[source.name] += int((choices[: len(numbers)] == index).sum())
        stretches.append(Stretch(numbers, tuple(left)))
        start = numbers.stop
    return stretches


def _length(
    choices: np.ndarray,
    sources: list[Drawable],
    capacities: Mapping[str, float],
    counts: Mapping[str, int],
) -> int:
    """How many documents can be drawn before the first source has given its last one."""
    length = choices.size
    for index, source in enumerate(sources):
        room = capacities.get(source.name, math.inf) - counts.get(source.name, 0)
        places = np.flatnonzero(choices[:length] == index)
        if places.size >= room:
            length = int(places[int(room) - 1]) + 1
    return length


def picks(part: Part, split: str, seed: int) -> list[Pick]:
    """Source and level of each document of a shard, by its number in the split."""
    ordinals = dict(part.before)
    result = []
    for stretch in part.stretches:
        uniform = _uniform(split, seed, stretch.numbers)
        choices = _choices(list(stretch.sources), uniform[:, 0]).tolist()
        drawn = zip(stretch.numbers, choices, uniform[:, 1].tolist(), strict=True)
        for number, choice, place in drawn:
            source = stretch.sources[choice]
            level = source.levels[int(place * len(source.levels))] if source.levels else 0
            result.append(Pick(number, source, level, ordinals.get(source.name, 0)))
            if source.name in ordinals:
                ordinals[source.name] += 1
    return result


def _uniform(split: str, seed: int, numbers: range) -> np.ndarray:
    """[documents, 2] numbers in [0, 1): document i takes block i of a Philox stream.

    So it doesn't matter in which shard, or after which other document, it is drawn.
    """
    key = hashlib.blake2b(f"pauca corpus {seed} {split}".encode(), digest_size=16).digest()
    stream = np.random.Philox(key=np.frombuffer(key, dtype="<u8"), counter=numbers.start)
    return (stream.random_raw(4 * len(numbers)).reshape(-1, 4)[:, :2] >> 11) * 2.0**-53


def _choices(sources: list[Drawable], uniform: np.ndarray) -> np.ndarray:
    shares = np.cumsum([source.share for source in sources])
    return np.searchsorted(shares[:-1] / shares[-1], uniform, side="right")


def record_indices(name: str, seed: int, ordinals: np.ndarray, num_records: int) -> np.ndarray:
    """Which record each document of a text is: every epoch is another order of all of them.

    Args:
        name: the source, which with the seed keys the order.
        seed: of the corpus.
        ordinals: [documents] which of the source's documents in its split each one is.
        num_records: records of the split.
    """
    epochs, places = np.divmod(ordinals, num_records)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        key = hashlib.blake2b(f"pauca records {seed} {name} {epoch}".encode()).digest()
        indices[epochs == epoch] = permuted(places[epochs == epoch], num_records, key)
    return indices
