"""Time calls in turn, so that a ratio compares calls of one moment."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from eval.machine import synchronize

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
DEVICES = ("cpu", "cuda")
PRECISIONS = {"32": "float32", "bf16": "bf16"}
"""What tables call them."""


def check_settings(settings: Mapping[str, Any], may_be_zero: tuple[str, ...] = ()) -> None:
    """Raise ValueError on what all suites refuse: sizes below 1, an unknown word."""
    for name, value in settings.items():
        least = 0 if name in ("threads", *may_be_zero) else 1
        if type(value) is int and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    for name, known in (("precision", PRECISIONS), ("device", DEVICES), ("clock", CLOCKS)):
        if settings[name] not in known:
            raise ValueError(f"{name}={settings[name]} is not known: choose {' or '.join(known)}")
    if settings["clock"] == "process" and (settings["threads"] != 1 or settings["device"] != "cpu"):
        raise ValueError("clock=process adds up all threads: set threads=1 and device=cpu")


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str,
    clock: str = "wall",
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Time each call in turn, `rounds` times after some to warm up; return the seconds of all."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + warm_up):
        for name, call in calls.items():
            synchronize(device)
            began = now()
            call()
            synchronize(device)
            if turn >= warm_up:
                seconds[name].append(now() - began)
    return seconds
