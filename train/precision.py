"""Choose device and precision once: bf16 autocast where the hardware is fast at it."""

import torch

PRECISIONS = ("auto", "32", "bf16")


def resolve_accelerator(accelerator: str) -> str:
    """Return cpu or cuda; auto takes a GPU where there is one.

    Raises:
        ValueError: cuda is asked for, and there is none.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("parallel.accelerator=cuda, but torch sees no GPU: choose cpu or auto")
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def resolve_precision(precision: str, accelerator: str) -> str:
    """Return 32 or bf16; auto looks at the hardware.

    CUDA from compute capability 8.0 multiplies bf16 on its matrix units; CPUs do with AVX512-BF16
    or AMX.
    """
    if precision != "auto":
        return precision
    if accelerator == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "32"
    return "bf16" if cpu_is_fast_at_bf16() else "32"


def cpu_is_fast_at_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    return any(check() for check in checks if check is not None)
