"""The most memory that each process of a real run holds.

    torchrun --standalone --nproc-per-node=2 -m tests.train.held FOLDER key=value ...

Each process trains as `python -m train` would, and leaves its bytes in FOLDER/RANK.json.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from torch.profiler import ProfilerActivity, profile

from train.pretrain import pretrain
from train.schema import register_schemas, to_config


def most_held(call: Callable[[], object]) -> int:
    """Run it and return its peak in bytes, as `eval.speed_memory` does for a process alone.

    Without what gloo allocates for itself, which other devices' groups don't: copies of what it
    sends, freed by threads where the profiler doesn't see it.
    """
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        call()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    changes = _changes(recorded.profiler.kineto_results.experimental_event_tree())
    return max(accumulate(size for _, size in sorted(changes)))


def _changes(events: list[Any]) -> Iterator[tuple[int, int]]:
    """When something was allocated or freed, and its bytes."""
    own, found = set(), sorted(_memory_events(events), key=lambda each: each[0].start_time_ns)
    for event, is_own in found:
        size, address = event.extra_fields.alloc_size, event.extra_fields.ptr
        if size > 0 and is_own:
            own.add(address)
        elif size > 0 or address not in own:
            own.discard(address)
            yield event.start_time_ns, size
        else:
            own.discard(address)


def _memory_events(events: list[Any], is_own: bool = False) -> Iterator[tuple[Any, bool]]:
    """Allocations and releases, and whether gloo made them."""
    for event in events:
        if event.name == "[memory]":
            yield event, is_own
        inside = is_own or event.name.startswith(("c10d::", "gloo:"))
        yield from _memory_events(event.children, inside)


def main(folder: Path, overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config, plain = to_config(compose("train", overrides))
    held = most_held(lambda: pretrain(config, plain))
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
