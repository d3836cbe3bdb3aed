"""What processes that train together must agree on before content steers them.

A sharded module gathers its weights when it is called, and gives gradients back for what it used.
So where what is read decides how often something runs, or whether it runs at all, all processes
must decide alike. Without a process group there is nobody to ask, and nothing is changed.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def anywhere(here: Tensor) -> Tensor:
    """Return, for each entry, whether it holds in any of the processes that train together."""
    if not _together():
        return here
    found = here.to(torch.int32)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.to(torch.bool)


def in_any_process(here: Tensor) -> bool:
    """Whether something holds in any of the processes that train together."""
    return bool(anywhere(here))


def most_in_any_process(counts: list[int], device: torch.device) -> list[int]:
    """Return, of each count, the largest that any of the processes has."""
    if not _together():
        return counts
    found = torch.tensor(counts, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
