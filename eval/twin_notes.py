"""Which unlooped runs of a report a looped one may be compared with, and in what they are equal."""

from collections.abc import Sequence

from eval.runs import Run

TOLERANCE = 0.02
EQUALS = {
    "parameters": "parameters",
    "train_flops": "training FLOPs",
    "block_calls_per_position": "depth",
}


def twin_notes(runs: Sequence[Run]) -> list[str]:
    """Name the twins of each looped backbone, one sentence each; say where there is none.

    A twin is an unlooped backbone within 2% in unique parameters, in training FLOPs, or in block
    calls.
    """
    looped = {run.backbone: run for run in runs if _is_looped(run)}
    plain = {run.backbone: run for run in runs if not _is_looped(run)}
    return [_note(name, run, plain) for name, run in looped.items()]


def _is_looped(run: Run) -> bool:
    return (run.cost.get("depth") or {}).get("kind", "fixed") != "fixed"


def _note(name: str, run: Run, plain: dict[str, Run]) -> str:
    found = []
    for key, said in EQUALS.items():
        names = [other for other, twin in plain.items() if _near(run.cost, twin.cost, key)]
        if names:
            found.append(f"{' and '.join(names)} in {said}")
    if found:
        return f"{name} is looped; unlooped, equal within 2%: {', '.join(found)}."
    return (
        f"{name} is looped, and no unlooped backbone here is its twin: train one with "
        "backbone.twin=params, flops or depth."
    )


def _near(one: dict[str, object], other: dict[str, object], key: str) -> bool:
    mine, theirs = one.get(key), other.get(key)
    if not isinstance(mine, int | float) or not isinstance(theirs, int | float) or not theirs:
        return False
    return abs(mine / theirs - 1) <= TOLERANCE
