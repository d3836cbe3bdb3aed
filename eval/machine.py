"""What this machine can do: its measured rate of matrix products."""

import time

import torch


def matmul_rate(dtype: torch.dtype, device: str, size: int = 1024, repeats: int = 10) -> float:
    """Return the best measured rate of `[4 size, size] @ [size, size]`, FLOP/s."""
    left = torch.randn(4 * size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats + 2):
        synchronize(device)
        began = time.perf_counter()
        torch.matmul(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * 4 * size**3 / best


def synchronize(device: str) -> None:
    """Wait for a GPU; CPUs need no waiting."""
    if device == "cuda":
        torch.cuda.synchronize()
