"""Whether a loop is well: what its states do from one recurrence to the next.

Legend: B batch, T time, D width.
"""

import torch
from torch import Tensor

from ..segments import row_means
from .depth import Trajectory
from .halting import exit_probabilities


@torch.no_grad()
def loop_health(trajectory: Trajectory, segments_BT: Tensor | None) -> dict[str, float]:
    """Measure recorded states, over the tokens of documents.

    Returns:
        `state_norm`: root mean square of the last state; it grows where a loop explodes.
        `loop_residual`: length of the last change over that of the state; near zero it has settled
        (only from two loops on). `token_correlation`: mean cosine of two tokens of one row; near
        one, all tokens say the same (collapse). `mean_loops`: loops run by a token where they may
        differ, or expected of a gate. Nothing where no states were recorded.
    """
    if not trajectory.states:
        return {}
    last = trajectory.states[-1].float()
    real_BT = torch.ones(last.shape[:2], dtype=torch.bool, device=last.device)
    own_BT = segments_BT if trajectory.segments_BT is None else trajectory.segments_BT
    if own_BT is not None:
        real_BT = own_BT >= 0
    lengths_BT = last.norm(dim=-1)
    found = {"state_norm": _mean(lengths_BT / last.shape[-1] ** 0.5, own_BT)}
    if len(trajectory.states) > 1:
        change_BT = (last - trajectory.states[-2].float()).norm(dim=-1)
        found["loop_residual"] = _mean(change_BT / lengths_BT.clamp(min=1e-12), own_BT)
    if trajectory.exits_BT is not None:
        found["mean_loops"] = _mean(trajectory.exits_BT.float(), segments_BT)
    elif trajectory.halts:
        found["mean_loops"] = _mean(expected_loops(trajectory.halts), segments_BT)
    return found | {"token_correlation": _correlation(last, real_BT)}


def expected_loops(halts: list[Tensor]) -> Tensor:
    """Loops that a gate would run on the mean, `[B, T]`."""
    p_RBT = exit_probabilities(halts)
    number_R = torch.arange(1, len(halts) + 1, device=p_RBT.device, dtype=p_RBT.dtype)
    return (number_R[:, None, None] * p_RBT).sum(dim=0)


def _mean(x_BT: Tensor, segments_BT: Tensor | None) -> float:
    """Mean over the tokens of each row, then over rows: however rows are put into batches."""
    return float(row_means(x_BT.double(), segments_BT).mean())


def _correlation(last_BTD: Tensor, real_BT: Tensor) -> float:
    """Mean cosine over pairs of different tokens: `(|sum u|^2 - n) / (n (n - 1))` of each row."""
    units = torch.nn.functional.normalize(last_BTD, dim=-1) * real_BT[..., None]
    count_B = real_BT.sum(dim=1).double()
    together_B = units.double().sum(dim=1).square().sum(dim=-1)
    pairs_B = (together_B - count_B) / (count_B * (count_B - 1)).clamp(min=1)
    return float(pairs_B.mean())
