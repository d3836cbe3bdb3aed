"""The energy counter of an NVIDIA GPU; nothing where there is none."""

import importlib
from typing import Any

import torch


class EnergyMeter:
    """Reads a GPU's own counter of energy since its driver was loaded.

    Attributes:
        available: whether there is a counter (a CUDA device that has one, and the package pynvml).
    """

    def __init__(self, device: torch.device) -> None:
        """Find the counter of `device`, if it has one."""
        self._library, self._handle = _open(device) if device.type == "cuda" else (None, None)

    @property
    def available(self) -> bool:
        """Whether `joules` returns numbers."""
        return self._library is not None

    def joules(self) -> float | None:
        """Joules spent so far by the whole device; None without a counter."""
        if self._library is None:
            return None
        return self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000


def _open(device: torch.device) -> tuple[Any, Any]:
    """The library and the device's handle, found by its id, since CUDA may number devices anew."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None, None
    try:
        library.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError:
        return None, None
    return library, handle
