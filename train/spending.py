"""cost.json: what a backbone holds and what training it costs."""

from dataclasses import asdict
from functools import cache
from typing import Any

from data.corpus import Corpus
from models.backbone import Backbone
from models.depth.draws import Draws

from .config import RunConfig
from .stage import StagePlan


def training_cost(
    backbone: Backbone, config: RunConfig, corpus: Corpus, plan: StagePlan
) -> dict[str, Any]:
    """Return the facts that a report states of each backbone.

    Training FLOPs are three forward passes' (one forward, two backward) over every document read,
    each reading out its positions with a target, at the loop counts that the run draws; loops that
    are not differentiated count once.
    """
    rows = corpus.split("train")
    counts = _loop_counts(backbone, config, plan)
    share = config.trainer.rows_per_step / rows.num_rows
    per_pass = {loops: _pass_flops(backbone, rows.document_lengths, loops) for loops in counts}
    flops = sum(share * steps * per_pass[loops] for loops, steps in counts.items())
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
        "mean_train_loops": sum(n * steps for n, steps in counts.items()) / sum(counts.values()),
        "peak_learning_rate": config.optim.lr,
        "seed": config.seed,
        "corpus": corpus.hash,
    }


def _loop_counts(backbone: Backbone, config: RunConfig, plan: StagePlan) -> dict[int, int]:
    """How many steps of the run draw each loop count (the largest, where rows have their own)."""
    counts: dict[int, int] = {}
    for step in range(config.trainer.max_steps):
        place = plan.place(step)
        where = (place.stage, place.step, place.steps, config.trainer.rows_per_step)
        loops = max(backbone.depth.counts(Draws(config.seed, *where)))
        counts[loops] = counts.get(loops, 0) + 1
    return counts


def _pass_flops(backbone: Backbone, lengths: Any, loops: int) -> float:
    """Training FLOPs of every document once, all positions read out."""

    @cache
    def flops(length: int) -> float:
        forward = backbone.prefill_cost(length, loops, readouts=length).flops
        return 3 * forward - 2 * backbone.depth.forward_only_cost(length, loops).flops

    return sum(flops(length) for length in lengths.tolist())
