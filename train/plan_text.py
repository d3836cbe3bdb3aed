"""A plan as people read it."""

from collections.abc import Iterable

from eval.table import Entry, Table

from .gpus import GIB
from .planning import LOOKED_ROWS, Plan

_GIGA = 1e9


def plan_tables(plan: Plan) -> list[Table]:
    """Return the tables of a plan: memory, communication, time."""
    tables = [_memory(plan)] if plan.memory is not None else []
    if plan.traffic:
        tables.append(_traffic(plan))
    return [*tables, _time(plan)]


def headline(plan: Plan) -> str:
    """What is planned, in a line."""
    work, layout = plan.work, plan.layout
    sharding = "" if layout.shards == 1 else f", {layout.shards} shards x {layout.replicas}"
    return (
        f"{work.asked.backbone.name}: {count(work.parameters)} parameters on {layout.world} x "
        f"{plan.gpu.name}, {layout.strategy}{sharding}, recompute={recompute_of(plan)}, "
        f"{'bf16 autocast' if work.bf16 else 'float32'}: {work.asked.rows} rows of "
        f"{work.asked.context} tokens per GPU x {work.accumulate} micro-batches"
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, and what to change if not."""
    if plan.memory is None:
        return "memory: not predicted (see the notes); try one real run"
    if plan.fits:
        more = " at least" if plan.largest and plan.largest >= LOOKED_ROWS else ""
        return (
            f"fits: {amount(plan.memory.total)} of the {amount(plan.limit)} that may be used; "
            f"largest micro-batch:{more} {plan.largest} rows per GPU"
        )
    held, limit = plan.memory.total / GIB, plan.limit / GIB
    if plan.largest:
        return (
            f"{held:.1f} GiB don't fit in {limit:.1f}: at most rows={plan.largest} per GPU fit, "
            "with more parallel.accumulate or more GPUs"
        )
    ways = _ways(plan)
    return (
        f"even one row per GPU doesn't fit in {limit:.1f} GiB ({plan.work.asked.rows} rows hold "
        f"{held:.1f}): {', or '.join(ways)}"
    )


def _ways(plan: Plan) -> Iterable[str]:
    if not plan.work.asked.recompute:
        yield "recompute=blocks"
    if plan.layout.shards == 1:
        yield "shard it (strategy=fsdp2, with world above 1)"
    else:
        yield f"more shards than {plan.layout.shards}"
    yield f"a smaller data.context than {plan.work.asked.context}"
    yield "a smaller backbone, or a GPU of more memory"


def recompute_of(plan: Plan) -> str:
    """The run's parallel.recompute."""
    return "blocks" if plan.work.asked.recompute else "none"


def strategy_of(plan: Plan) -> str:
    """The strategy, as configs/parallel names it."""
    layout = plan.layout
    if layout.shards > 1 and layout.replicas > 1:
        return f"hsdp, {layout.replicas} replicas"
    return layout.strategy


def count(number: float) -> str:
    """A number of parameters or tokens as people say it."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def amount(bytes_: float) -> str:
    """Bytes as people say them."""
    for size, unit in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if bytes_ >= size:
            return f"{bytes_ / size:.2f} {unit}"
    return f"{bytes_:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.2f} µs"


def _memory(plan: Plan) -> Table:
    assert plan.memory is not None
    parts = sorted(plan.memory.parts.items(), key=lambda part: -part[1])
    total = plan.memory.total
    rows = [
        [Entry(name), Entry(amount(size)), Entry(f"{size / total:.0%}")] for name, size in parts
    ]
    rows.append([Entry("in all", "strong"), Entry(amount(total), "strong"), Entry("100%")])
    return Table(
        "Memory of a GPU at a step's worst moment", ["part", "held", "share"], rows, names=1
    )


def _traffic(plan: Plan) -> Table:
    rows = [
        [
            Entry(part.what),
            Entry(amount(part.sent)),
            Entry(str(part.calls)),
            Entry(str(part.group)),
            Entry("node" if part.is_in_node else "network"),
        ]
        for part in plan.traffic
    ]
    columns = ["what", "sent by a GPU", "calls", "GPUs", "over"]
    return Table("Communication of a step", columns, rows, names=1)


def _time(plan: Plan) -> Table:
    time, work, hours = plan.time, plan.work, plan.gpu_hours
    tokens = work.tokens_per_step
    facts = [
        ("model FLOPs of a step", f"{work.flops:.3g}"),
        ("computing", duration(time.computing)),
        ("communication, unhidden", duration(time.communication)),
        ("step", duration(time.step)),
        ("tokens per second", count(tokens / time.step)),
        ("model FLOP/s over peak", f"{plan.utilisation:.1%}"),
        ("steps, tokens of the run", f"{work.steps:,}, {count(tokens * work.steps)}"),
        ("time of the run", duration(work.steps * time.step)),
        ("GPU-hours", f"{hours:,.3g}" if hours < 1000 else f"{hours:,.0f}"),
    ]
    if plan.settings.price:
        facts.append(("money", f"{hours * plan.settings.price:,.2f}"))
    rows = [[Entry(name), Entry(said)] for name, said in facts]
    return Table("Time, by the rates assumed below", ["what", "figure"], rows, names=1)


def assumptions(plan: Plan) -> list[str]:
    """What the figures stand on."""
    gpu, given = plan.gpu, plan.settings
    rate = gpu.rate(plan.work.bf16) / 1e12
    return [
        f"{gpu.name}: {gpu.memory / GIB:.1f} GiB, {rate:.4g} TFLOP/s, {gpu.node_link / _GIGA:g}"
        f" GB/s in a node of {plan.layout.per_node}, {gpu.network / _GIGA:g} GB/s between nodes "
        f"({gpu.source})",
        f"usable={given.usable} peak_fraction={given.peak_fraction} link_fraction="
        f"{given.link_fraction} overlap={given.overlap} hop_us={given.hop_us}: set what "
        "you measured",
        "rows are one document each and every position is a target; the scratch space of single "
        "operators is not counted",
        *plan.notes,
    ]
