"""The tables of grouped runs: who solves what, at which level, at which learning rate."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from eval.mechanisms import SOLVED, Mechanisms, Outcome, SeedResult
from eval.table import Entry, Table

RULE = (
    f"A seed solves a task if its accuracy is at least {100 * SOLVED:g}% at each held-out level. "
    "Below the share of seeds that do: mean accuracy over these levels, with the range over seeds "
    "in brackets, the same at levels harder than trained (where a seed beats guessing there), and "
    "the learning rate, which was chosen by validation loss."
)
NO_CONTROL = "no control passed"


def mechanism_table(found: Mechanisms) -> Table:
    """Show the share of seeds that solve each task: a row per backbone, a column per task."""
    rows = [
        [Entry(label), *(_outcome_entry(found, label, task) for task in found.tasks)]
        for label in found.labels
    ]
    return Table(
        title="Which seeds solve what",
        columns=["Backbone", *(_head(found, task) for task in found.tasks)],
        rows=rows,
        note=" ".join([RULE, *control_notes(found)]),
        names=1,
    )


def _head(found: Mechanisms, task: str) -> str:
    result = next(iter(found.of_task(task).values())).seeds[0]
    harder = f"; harder {_listed(result.beyond)}" if found.goes_beyond(task) else ""
    return f"{task} (level {_listed(result.levels)}{harder})"


def _listed(levels: Iterable[int]) -> str:
    return ", ".join(str(level) for level in sorted(levels))


def _outcome_entry(found: Mechanisms, label: str, task: str) -> Entry:
    outcome = found.outcomes.get((label, task))
    if outcome is None:
        return Entry("–", "faint")
    said = [over_seeds(result.accuracy for result in outcome.seeds)]
    beyond = [mean(result.beyond.values()) for result in outcome.seeds if result.beyond]
    if beyond and found.goes_beyond(task):
        said.append(f"harder {over_seeds(beyond)}")
    if len(outcome.losses) > 1:
        said.append(f"rate {outcome.rate:g}")
    if found.controls[task] is None:
        return Entry("–", "faint", (NO_CONTROL, *said))
    verdict = f"{outcome.solved}/{len(outcome.seeds)}"
    tone = "strong" if outcome.solved == len(outcome.seeds) else "" if outcome.solved else "faint"
    return Entry(verdict, tone, tuple(said))


def over_seeds(shares: Iterable[float]) -> str:
    """Write the mean of some shares with their range, in percent: "97.2 [95.4 to 98.3]"."""
    values = [100 * share for share in shares]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} [{min(values):.1f} to {max(values):.1f}]"


def control_notes(found: Mechanisms) -> list[str]:
    """Say of each task which backbone shows that the budget suffices, or that none does."""
    passed, failed = [], []
    for task, control in found.controls.items():
        if control is None:
            failed.append(task)
        else:
            outcome = found.outcomes[control, task]
            passed.append(f"{task}: {control}, {outcome.solved} of {len(outcome.seeds)} seeds")
    notes = [f"Positive controls (same budget): {'; '.join(passed)}."] if passed else []
    if failed:
        notes.append(
            f"No verdict on {', '.join(failed)}: no backbone solves it with at least half of its "
            "seeds, so that a failure may be the budget's."
        )
    return notes


def mechanism_notes(found: Mechanisms) -> list[str]:
    """Say what a reader must know before comparing the groups."""
    notes = []
    counts = {len(outcome.seeds) for outcome in found.outcomes.values()}
    if len(counts) > 1:
        notes.append(f"Groups have {min(counts)} to {max(counts)} seeds: the sweep isn't whole.")
    grids = {tuple(outcome.losses) for outcome in found.outcomes.values()}
    if len(grids) > 1:
        notes.append("Groups were not tried at the same learning rates: see the rates below.")
    if blind := [_name(key) for key, o in found.outcomes.items() if _is_blind(o)]:
        notes.append(f"No validation loss, so the least rate is shown: {', '.join(blind)}.")
    edges = sum(outcome.at_edge for outcome in found.outcomes.values())
    if edges and any(len(grid) > 2 for grid in grids):
        notes.append(
            f"{edges} of {len(found.outcomes)} groups are best at an edge of the grid of rates."
        )
    return notes


def _name(key: tuple[str, str]) -> str:
    return f"{key[0]} on {key[1]}"


def _is_blind(outcome: Outcome) -> bool:
    return len(outcome.losses) > 1 and all(loss is None for loss in outcome.losses.values())


def mechanism_level_tables(found: Mechanisms) -> list[Table]:
    """List accuracy by level, over seeds, a table per task."""
    return [_level_table(task, found.of_task(task)) for task in found.tasks]


def _level_table(task: str, outcomes: Mapping[str, Outcome]) -> Table:
    any_seed = next(iter(outcomes.values())).seeds[0]
    levels = [*any_seed.levels, *any_seed.beyond]
    heads = [f"Level {level}{' (harder)' * (level in any_seed.beyond)}" for level in levels]
    rows = [
        [Entry(label), *(Entry(over_seeds(_at(outcome.seeds, level))) for level in levels)]
        for label, outcome in outcomes.items()
    ]
    return Table(
        title=f"{task}: accuracy by level over seeds (%)",
        columns=["Backbone", *heads],
        rows=rows,
        note=f"Mean and range over seeds. Guessing: {100 * any_seed.chance:.3g}%.",
        names=1,
    )


def _at(seeds: Sequence[SeedResult], level: int) -> list[float]:
    return [{**result.levels, **result.beyond}[level] for result in seeds]


def rate_table(found: Mechanisms) -> Table | None:
    """List every learning rate that was tried; None where there was only one."""
    rates = sorted({rate for outcome in found.outcomes.values() for rate in outcome.losses})
    if len(rates) < 2:
        return None
    rows = [
        [Entry(task), Entry(label), *(_rate_entry(outcome, rate) for rate in rates)]
        for task in found.tasks
        for label, outcome in found.of_task(task).items()
    ]
    return Table(
        title="Every learning rate: final validation loss, then accuracy and solved seeds",
        columns=["Task", "Backbone", *(f"{rate:g}" for rate in rates)],
        rows=rows,
        note="Chosen by the mean validation loss over seeds (bold), never by test accuracy.",
        grouped=True,
    )


def _rate_entry(outcome: Outcome, rate: float) -> Entry:
    results = [result for result in outcome.tried if result.rate == rate]
    if not results:
        return Entry("–", "faint")
    loss = outcome.losses[rate]
    solved = f"{sum(result.solved for result in results)}/{len(results)}"
    detail = f"{over_seeds(result.accuracy for result in results)}, {solved}"
    text = "no loss" if loss is None else f"{loss:.4g}"
    return Entry(text, "strong" if rate == outcome.rate else "", (detail,))
