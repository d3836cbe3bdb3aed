"""What this machine is, and what it can do: its measured rate of matrix products."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

SIZES = (256, 512, 1024)
"""Widths of the products; the fastest of them is what a model could reach."""


def machine_facts(device: str) -> dict[str, str | int | float | None]:
    """Return what a measured speed depends on: processor, threads, load, versions.

    The load average is of the last minute: much above zero at the start of a run, something else
    ran beside it, and only ratios of the run mean something.
    """
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": _version("transformers"),
    }


def matmul_rate(
    dtype: torch.dtype, device: str, sizes: tuple[int, ...] = SIZES, repeats: int = 10
) -> float:
    """Return the best measured rate of `[4096, n] @ [n, n]` over the widths n, FLOP/s."""
    return max(_rate(dtype, device, size, repeats) for size in sizes)


def _rate(dtype: torch.dtype, device: str, size: int, repeats: int) -> float:
    left = torch.randn(4096, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats + 2):
        synchronize(device)
        began = time.perf_counter()
        torch.matmul(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * 4096 * size**2 / best


def synchronize(device: str) -> None:
    """Wait for a GPU; CPUs need no waiting."""
    if device == "cuda":
        torch.cuda.synchronize()


def _processor() -> str:
    """The processor's name: Linux tells it in a file, other systems through `platform`."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
