"""A report names the twins of its looped backbones."""

from pathlib import Path
from typing import Any

import polars as pl

from eval.runs import Run
from eval.twin_notes import twin_notes


def run(name: str, kind: str, parameters: int, flops: float, calls: int) -> Run:
    cost: dict[str, Any] = {
        "depth": {"kind": kind},
        "parameters": parameters,
        "train_flops": flops,
        "block_calls_per_position": calls,
    }
    return Run(Path(name), name, name, name, cost, "", {}, pl.DataFrame())


def test_twins_are_named_by_what_they_equal() -> None:
    runs = [
        run("loop", "looped", 1000, 4e6, 4),
        run("one", "fixed", 1010, 1e6, 1),
        run("four", "fixed", 4000, 4.05e6, 4),
        run("alone", "nested", 500, 9e6, 9),
    ]
    first, second = twin_notes(runs)
    assert first == (
        "loop is looped; unlooped, equal within 2%: one in parameters, four in training FLOPs, "
        "four in depth."
    )
    assert second.startswith("alone is looped, and no unlooped backbone here is its twin")
    assert twin_notes(runs[1:3]) == []
