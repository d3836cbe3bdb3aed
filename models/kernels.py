"""Optional fused kernels: looked up once, checked against plain torch, explained.

Nothing here is needed to import, train or test. A kernel that is missing, or whose small forward
and backward differ from a plain recurrence, is left aside with a reason that `describe` tells, and
with a warning where it is installed and wrong. The environment variable PAUCA_KERNELS=0, or
`use_kernels(False)`, leaves all of them aside.

What the checks are for: Triton from 3.4 on Hopper gave wrong gradients of the delta rule with a
right output (flash-linear-attention issues 640, 984), and Blackwell wrong outputs (mamba 997).

Legend: B batch, T time, H heads, K key dim, V value dim, W filter width.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from .kernel_adapters import (
    decayed_attention,
    delta_rule,
    dplr,
    erase_write,
    named_alike,
    scan,
    short_convolution,
)
from .kernel_checks import (
    Operation,
    Trial,
    convolution_trial,
    largest_difference,
    plain_convolution,
    plain_decayed,
    plain_delta,
    plain_dplr,
    plain_erase_write,
    plain_scan,
    recurrence_trial,
    scan_trial,
)
from .kernel_documents import document_bounds
from .kernel_flash import Attend, flash_documents, self_check
from .kernel_sparse import (
    checked_moba,
    checked_selection,
    moba,
    moba_trial,
    plain_moba,
    plain_selected,
    selected_blocks,
    selection_trial,
)

__all__ = [
    "KERNELS",
    "TOLERANCE",
    "Kernel",
    "describe",
    "document_bounds",
    "find",
    "flash_documents",
    "flash_varlen",
    "self_check",
    "use_kernels",
]

TOLERANCE = 2e-2
"""Largest relative error of a half-precision kernel against float32 torch, forward and backward."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """One operator's fused kernel.

    Attributes:
        module: where the package keeps it.
        name: the function there.
        adapter: gives it the operator's signature.
        plain: what it must equal.
        trial: draws inputs for (keys, values, device), the sizes that the kernel will see.
        fits: whether it takes such sizes at all.
        checked: makes an operator that can be checked of one that is called otherwise.
    """

    module: str
    name: str
    adapter: Callable[..., Any]
    plain: Callable[..., Any]
    trial: Callable[[int, int, torch.device], Trial]
    fits: Callable[[int, int], bool] = lambda keys, values: keys <= 256
    checked: Callable[[Callable[..., Any]], Operation] = lambda run: run


def _recurrence(decay: str, *names: str) -> Callable[[int, int, torch.device], Trial]:
    return partial(recurrence_trial, decay=decay, extra=names)


_GATED = ("v", "log_decay", "beta")
_PLUS_LOW_RANK = ("v", "a", "b", "log_decay")
_DPLR = ("fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule")
KERNELS: dict[str, Kernel] = {
    "decayed_attention": Kernel(
        "fla.ops.simple_gla",
        "chunk_simple_gla",
        decayed_attention,
        plain_decayed,
        _recurrence("head", "v", "log_decay"),
    ),
    "decayed_attention by channel": Kernel(
        "fla.ops.gla",
        "chunk_gla",
        decayed_attention,
        plain_decayed,
        _recurrence("channel", "v", "log_decay"),
    ),
    "delta_rule": Kernel(
        "fla.ops.gated_delta_rule",
        "chunk_gated_delta_rule",
        delta_rule,
        plain_delta,
        _recurrence("head", *_GATED),
    ),
    "delta_rule by channel": Kernel(
        "fla.ops.kda", "chunk_kda", delta_rule, plain_delta, _recurrence("channel", *_GATED)
    ),
    "erase_write by channel": Kernel(
        *_DPLR, erase_write, plain_erase_write, _recurrence("channel", "erase", "v", "log_decay")
    ),
    "dplr by channel": Kernel(*_DPLR, dplr, plain_dplr, _recurrence("mild", *_PLUS_LOW_RANK)),
    "scan": Kernel(
        "mamba_ssm.ops.triton.ssd_combined",
        "mamba_chunk_scan_combined",
        scan,
        plain_scan,
        scan_trial,
    ),
    "short_convolution": Kernel(
        "causal_conv1d",
        "causal_conv1d_fn",
        short_convolution,
        plain_convolution,
        convolution_trial,
        fits=lambda width, channels: 2 <= width <= 4 and channels % 8 == 0,
    ),
    "selected_blocks": Kernel(
        "fla.ops.nsa.parallel",
        "parallel_nsa",
        selected_blocks,
        plain_selected,
        selection_trial,
        checked=checked_selection,
    ),
    "moba": Kernel(
        "fla.ops.moba", "parallel_moba", moba, plain_moba, moba_trial, checked=checked_moba
    ),
}
"""Which kernel stands behind which operator; "by channel" has a decay for each key channel."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Key = tuple[str, int, int, torch.dtype, torch.device]
_running: dict[_Key, Callable[..., Any] | None] = {}
_reasons: dict[str, str] = {}
_DEVICE = "cuda"
_switch = {"on": os.environ.get("PAUCA_KERNELS", "1") != "0"}


def _outside_graphs(function: _Function) -> _Function:
    """Let torch.compile step around a function: it can't look into kernels, nor should it try."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def use_kernels(enabled: bool) -> None:
    """Let fused kernels run where they are sound, or leave all of them aside."""
    _switch["on"] = enabled


def describe() -> dict[str, str]:
    """Return, for each kernel, that it runs or why it doesn't."""
    if not _allowed():
        why = "only deterministic kernels are allowed" if _switch["on"] else "turned off"
        return {name: f"not used: {why}" for name in ("flash_attn", *KERNELS)}
    idle = "not asked for" if torch.cuda.is_available() else _NEEDS
    return {name: _reasons.get(name, idle) for name in ("flash_attn", *KERNELS)}


_NEEDS = "not used: needs a GPU and half precision"


def find(
    operator: str, v: Tensor, q: Tensor, log_decay: Tensor | None = None
) -> Callable[..., Any] | None:
    """Return the kernel that may stand in for an operator on such tensors, or None.

    Args:
        operator: a name in `KERNELS`, without "by channel".
        v: the values, whose device and dtype decide; a convolution's inputs.
        q: the queries; a convolution's filters `[D, W]`.
        log_decay: by head or by channel; None where the operator has none.

    Returns:
        A callable with the operator's arguments, but for `chunk_size`.
    """
    if v.device.type != _DEVICE or v.dtype not in HALF or not _allowed():
        return None
    name = operator
    if log_decay is not None and log_decay.dim() == v.dim():
        name = f"{operator} by channel"
    key = (name, q.shape[-1], v.shape[-1], v.dtype, v.device)
    if key not in _running:  # a compiled caller is traced again once this is known
        resolve(key)
    return _running[key]


def _allowed() -> bool:
    return _switch["on"] and not torch.are_deterministic_algorithms_enabled()


@_outside_graphs
def resolve(key: _Key) -> None:
    """Look a kernel up and check it; once per process, device, precision and sizes."""
    name, keys, values, dtype, device = key
    _running[key] = None
    kernel = KERNELS.get(name)
    if kernel is None:
        return
    if not kernel.fits(keys, values):
        _reasons[name] = f"not used: does not take sizes {keys} and {values}"
        return
    function = _imported(name, kernel.module, kernel.name)
    if function is None:
        return
    ready = named_alike(function) if kernel.name.startswith("chunk_") else function
    run = partial(kernel.adapter, ready)

    def check() -> tuple[float, str]:
        trial = kernel.trial(keys, values, device)
        pair = kernel.checked(run), kernel.checked(kernel.plain)
        return largest_difference(*pair, trial, dtype)

    if _sound(name, check, f"{device}, sizes {keys} and {values}"):
        _running[key] = _outside_graphs(run)


def _imported(name: str, module: str, function: str) -> Callable[..., Any] | None:
    try:  # packages whose binaries fit another torch raise anything
        return getattr(import_module(module), function)
    except Exception as error:
        _reasons[name] = f"not used: {type(error).__name__}: {error}"
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"{name} {_reasons[name]}; torch runs instead", stacklevel=2)
        return None


def _sound(name: str, check: Callable[[], tuple[float, str]], where: str) -> bool:
    """Whether a kernel passes its check; loud where it doesn't."""
    try:
        error, what = check()
    except Exception as failure:
        _reasons[name] = f"not used: its check failed with {type(failure).__name__}: {failure}"
    else:
        if error <= TOLERANCE:
            _reasons[name] = f"runs on {where}: within {error:.1e} of torch"
            return True
        _reasons[name] = f"not used: {what} differs from torch by {error:.1e} on {where}"
    warnings.warn(f"{name} {_reasons[name]}; torch runs instead", stacklevel=2)
    return False


_flash: dict[torch.device, Attend | None] = {}


def flash_varlen(x: Tensor) -> Attend | None:
    """Return flash-attn's variable-length attention if it can run on tensors like `x`."""
    if x.device.type != "cuda" or x.dtype not in HALF or not _allowed():
        return None
    if x.device not in _flash:
        resolve_flash(x.device)
    return _flash[x.device]


@_outside_graphs
def resolve_flash(device: torch.device) -> None:
    """Look flash-attn up and check it; once per process and device."""
    _flash[device] = None
    function = _imported("flash_attn", "flash_attn", "flash_attn_varlen_func")
    if function is None:
        return

    def check() -> tuple[float, str]:
        return self_check(flash_documents, function, device), "output or a gradient"

    if _sound("flash_attn", check, str(device)):
        _flash[device] = _outside_graphs(function)
