"""cost.json: what a backbone holds and what training it costs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from data.corpus import Corpus
from models.backbone import Backbone
from models.depth.draws import Draws

from .config import RunConfig
from .loop_losses import ExtraPass
from .objective import extra_passes
from .objective_config import READS_LOOPS
from .stage import StagePlan


def training_cost(
    backbone: Backbone, config: RunConfig, corpus: Corpus, plan: StagePlan
) -> dict[str, Any]:
    """Return the facts that a report states of each backbone.

    Training FLOPs are three forward passes' (one forward, two backward) over every document read,
    each reading out its positions, at the loop counts that the run draws; loops that are not
    differentiated count once, and what an objective over loops runs and reads out counts too.
    """
    rows = corpus.split("train")
    steps = _kinds_of_steps(backbone, config, plan)
    share = config.trainer.rows_per_step / rows.num_rows
    lengths = rows.document_lengths.tolist()
    flops = sum(
        share * times * step_flops(backbone, lengths, kind) for kind, times in steps.items()
    )
    mean_loops = sum(kind.loops * times for kind, times in steps.items()) / sum(steps.values())
    context = config.data.context
    return {
        "backbone": config.backbone.name,
        "layout": config.backbone.layout,
        "depth": asdict(config.backbone.depth),
        "parameters": backbone.num_parameters,
        "non_embedding_parameters": backbone.num_parameters - backbone.embedding.weight.numel(),
        "mlp_hidden": backbone.config.mlp_hidden,
        "block_calls_per_position": backbone.block_calls_per_position(),
        "model_flops_per_token": backbone.cost(context).flops,
        "state_bytes": backbone.cost(context).state_bytes,
        "weight_bytes": backbone.cost(context).weight_bytes,
        "context": context,
        "train_steps": config.trainer.max_steps,
        "train_tokens": round(share * config.trainer.max_steps * rows.num_tokens),
        "train_flops": flops,
        "mean_train_loops": mean_loops,
        "peak_learning_rate": config.optim.lr,
        "seed": config.seed,
        "corpus": corpus.hash,
    }


@dataclass(frozen=True)
class StepKind:
    """What a training step runs, as far as its cost goes.

    Attributes:
        loops: loops of its own pass (the largest count, where rows have their own).
        extra: further passes.
        reads_loops: whether it reads every loop out.
        jacobian: whether it runs the last loop twice more.
    """

    loops: int
    extra: tuple[ExtraPass, ...] = ()
    reads_loops: bool = False
    jacobian: bool = False


def _kinds_of_steps(backbone: Backbone, config: RunConfig, plan: StagePlan) -> Counter[StepKind]:
    """How many steps of the run are of each kind."""
    kinds: Counter[StepKind] = Counter()
    for step in range(config.trainer.max_steps):
        place = plan.place(step)
        objective = plan.stages[place.stage].objective
        where = (place.stage, place.step, place.steps, config.trainer.rows_per_step)
        draws = Draws(config.seed, *where)
        loops = max(backbone.depth.counts(draws))
        extra = tuple(extra_passes(objective, draws, loops))
        reads = objective.resolve_over(backbone) in READS_LOOPS
        kinds[StepKind(loops, extra, reads, objective.jacobian > 0)] += 1
    return kinds


def step_flops(backbone: Backbone, lengths: Sequence[int], kind: StepKind) -> float:
    """Training FLOPs of every document once, all positions read out."""

    @cache
    def flops(length: int) -> float:
        found = _pass_flops(backbone, length, kind.loops, None)
        found += sum(_pass_flops(backbone, length, e.loops, e.window) for e in kind.extra)
        if kind.reads_loops:
            found += 3 * (kind.loops - 1) * backbone.finish_cost(length).flops
        if kind.jacobian:
            found += 3 * 2 * _one_loop(backbone, length, kind.loops)
        return found

    return sum(map(flops, lengths))


def _pass_flops(backbone: Backbone, length: int, loops: int, window: int | None) -> float:
    """One pass: what is differentiated three times, what isn't once."""
    forward = backbone.prefill_cost(length, loops, readouts=length).flops
    return 3 * forward - 2 * backbone.depth.forward_only_cost(length, loops, window).flops


def _one_loop(backbone: Backbone, length: int, loops: int) -> float:
    """One loop more."""
    more, fewer = (backbone.depth.prefill_cost(length, n).flops for n in (loops + 1, loops))
    return more - fewer
