"""The most memory that a call holds at once, beyond what was there before it.

On CPUs every allocation and release that passes torch's allocator is recorded by its profiler and
added up in order: results, what is kept for the gradient, and the scratch space of operators. It is
exact and the same on every run, where the process's resident size depends on what was freed before.
Not seen: buffers that a library (oneDNN, MKL) takes from elsewhere; they don't grow with the
sequence. On GPUs it is the caching allocator's own peak.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """Run `call` once and return its peak, bytes."""
    return _peak_on_gpu(call) if device == "cuda" else _peak_on_cpu(call)


def _peak_on_gpu(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(call: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it greets on standard error, each time
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        call()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events: list[Any] = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda change: change.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
