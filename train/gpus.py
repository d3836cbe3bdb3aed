"""What devices offer: rates at their peak, memory, and links. All are assumptions of a plan.

Rates are the makers' dense ones (no sparsity), from data sheets; memory is what torch reports of
such a device, a little under the sheet's; links are per device and direction. Nothing of this was
measured here, except for `cpu`, which is the machine at hand.
"""

import os
from dataclasses import dataclass, replace

import torch

from eval.machine import matmul_rate

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """One kind of device.

    Attributes:
        name: how it is asked for.
        memory: bytes that torch can use.
        bf16: FLOP/s of bfloat16 matrix products with float32 sums.
        fp32: FLOP/s of float32 products (torch's default: no TF32).
        node_link: bytes/s to other devices of the node, each direction.
        network: bytes/s to other nodes, each direction.
        source: where the figures are from.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    node_link: float
    network: float
    source: str

    def rate(self, bf16: bool) -> float:
        """FLOP/s of matrix products."""
        return self.bf16 if bf16 else self.fp32


_LISTED = (
    Gpu(
        "a100",
        79.1 * GIB,
        312 * TERA,
        19.5 * TERA,
        300 * GIGA,
        25 * GIGA,
        "NVIDIA A100 80GB SXM data sheet; DGX A100: a 200 Gb/s adapter for each GPU",
    ),
    Gpu(
        "h100",
        79.1 * GIB,
        989 * TERA,
        67 * TERA,
        450 * GIGA,
        50 * GIGA,
        "NVIDIA H100 SXM data sheet; DGX H100: a 400 Gb/s adapter for each GPU",
    ),
    Gpu(
        "h200",
        139 * GIB,
        989 * TERA,
        67 * TERA,
        450 * GIGA,
        50 * GIGA,
        "NVIDIA H200 SXM data sheet; DGX H200: a 400 Gb/s adapter for each GPU",
    ),
    Gpu(
        "b200",
        178 * GIB,
        2250 * TERA,
        75 * TERA,
        900 * GIGA,
        50 * GIGA,
        "NVIDIA DGX B200 data sheet, an eighth of the node; a 400 Gb/s adapter for each GPU",
    ),
    Gpu(
        "rtx4090",
        23.6 * GIB,
        165 * TERA,
        82.6 * TERA,
        25 * GIGA,
        1.5 * GIGA,
        "NVIDIA Ada white paper; PCIe 4.0 x16 without peer access (assumed 25 of 32 GB/s), and "
        "100 Gb/s shared by eight (assumed)",
    ),
)
GPUS = {gpu.name: gpu for gpu in _LISTED}
NAMES = (*GPUS, "cpu")


def known_gpu(device: str) -> Gpu | None:
    """Return the stated figures of a device, by torch's name of it; None where none are listed.

    The SXM kinds are meant: the same chip on a PCIe card is slower, and isn't listed.
    """
    words = set(device.lower().replace("rtx ", "rtx").replace("-", " ").split())
    if words & {"pcie", "nvl", "mig"}:
        return None
    return next((GPUS[name] for name in GPUS if name in words), None)


def find_gpu(name: str) -> Gpu:
    """Return a device's figures; those of `cpu` are measured now, on all threads of this process.

    Raises:
        ValueError: there is none of this name.
    """
    if name == "cpu":
        return _this_machine()
    if name not in GPUS:
        raise ValueError(f"gpu={name} is not known: choose one of {', '.join(NAMES)}")
    return GPUS[name]


def _this_machine() -> Gpu:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    measured = Gpu("cpu", memory, 0.0, 0.0, 1 * GIGA, 1 * GIGA, "this machine, measured now")
    rates = [matmul_rate(kind, "cpu", (512,), 3) for kind in (torch.bfloat16, torch.float32)]
    return replace(measured, bf16=rates[0], fp32=rates[1])
