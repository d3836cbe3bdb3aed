"""Losses over the loops of a looped backbone, beside or in place of the final one's.

Legend: B batch, T time, D width, N positions with a target, R recurrence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from models.backbone import Output
from models.depth.depth import Trajectory
from models.depth.draws import Draws, key_of
from models.depth.halting import exit_probabilities
from models.segments import row_means

from .loss import position_losses, target_places
from .objective_config import ObjectiveConfig

STEP = 1e-2
"""Length of a step along a random direction, over that of a row's state."""
LEAST_LENGTH = 1e-6
"""Of a state, for a row without a token: it has no length to go by."""


@dataclass(frozen=True)
class Targets:
    """What the positions with a weight are to say.

    Attributes:
        places_N: the positions, of all rows laid end to end.
        tokens_N: their targets.
        weights_N: their weights.
    """

    places_N: Tensor
    tokens_N: Tensor
    weights_N: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Targets":
        """Return the targets of a batch."""
        places_N = target_places(batch.loss_BT)
        tokens_N, weights_N = batch.targets_BT.flatten(), batch.loss_BT.flatten()
        return cls(places_N, tokens_N[places_N], weights_N[places_N])

    def at(self, x: Tensor) -> Tensor:
        """Return what stands at these positions of `[B, T, ...]`."""
        return x.flatten(0, 1)[self.places_N]


def loss_over_loops(output: Output, targets: Targets, config: ObjectiveConfig, over: str) -> Tensor:
    """Return the weighted sum of what each position is charged, given all loops' predictions."""
    earlier = [output.finish(state) for state in output.trajectory.states[:-1]]
    hidden = [targets.at(hidden_BTD) for hidden_BTD in (*earlier, output.hidden_BTD)]
    if over in ("gate", "correct"):
        with torch.no_grad():
            losses_RN, right_RN = _judged(output, hidden, targets, config)
        charged_N = _gate_loss(output.trajectory, targets, losses_RN, right_RN, config, over)
    else:
        losses_RN = torch.stack([_losses(output, h, targets, config) for h in hidden])
        charged_N = (_shares(output.trajectory, targets, over, losses_RN) * losses_RN).sum(dim=0)
    return (charged_N * targets.weights_N).sum()


def _losses(output: Output, hidden: Tensor, targets: Targets, config: ObjectiveConfig) -> Tensor:
    size = config.chunk_size
    return position_losses(hidden, output.readout, targets.tokens_N, size, config.z_loss)


def _shares(trajectory: Trajectory, targets: Targets, over: str, losses_RN: Tensor) -> Tensor:
    """The weight of each loop's prediction, `[R, N or 1]`; they sum to one."""
    if over == "expected":
        return exit_probabilities([targets.at(halt) for halt in trajectory.halts])
    loops = len(losses_RN)
    rising_R = torch.ones(loops) if over == "uniform" else torch.arange(1.0, loops + 1)
    return (rising_R / rising_R.sum()).to(losses_RN)[:, None]


def _judged(
    output: Output, hidden: list[Tensor], targets: Targets, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Each loop's losses, and whether its prediction is right, `[R, N]`."""
    losses = [_losses(output, h, targets, config) for h in hidden]
    size = config.chunk_size
    right = [
        torch.cat([output.readout(part).argmax(dim=-1) for part in h.split(size)])
        == targets.tokens_N
        for h in hidden
    ]
    return torch.stack(losses), torch.stack(right)


def _gate_loss(
    trajectory: Trajectory,
    targets: Targets,
    losses_RN: Tensor,
    right_RN: Tensor,
    config: ObjectiveConfig,
    over: str,
) -> Tensor:
    """Cross-entropy of the gate, a mean over loops.

    gate     after loop r >= 2 it is to go on with chance `w = sigmoid(k (I - margin))`, where
             `I = max(0, loss_{r-1} - loss_r)` is what the loop gained (Ouro, arXiv 2510.25741)
    correct  after each loop but the last it is to stop where the prediction is right (TaH's oracle,
             arXiv 2511.08577)
    """
    chances_RN = torch.stack([targets.at(halt) for halt in trajectory.halts])
    chances_RN = chances_RN.clamp(1e-6, 1 - 1e-6)
    if over == "correct":
        stops_RN = right_RN[:-1].to(chances_RN.dtype)
        return F.binary_cross_entropy(chances_RN[:-1], stops_RN, reduction="none").mean(dim=0)
    gained_RN = (losses_RN[:-1] - losses_RN[1:]).clamp(min=0)
    goes_on_RN = (config.gate_gain * (gained_RN - config.gate_margin)).sigmoid()
    stops_RN = (1 - goes_on_RN).to(chances_RN.dtype)
    return F.binary_cross_entropy(chances_RN[1:], stops_RN, reduction="none").mean(dim=0)


def jacobian_norm(trajectory: Trajectory, segments_BT: Tensor, draws: Draws) -> Tensor:
    """Return `|J u|^2 / D` of the loop's Jacobian J at the last state, a mean over rows.

    `u` is a standard normal direction, so its mean is the squared Frobenius norm over D. The
    product is a finite difference: fused kernels have no second derivative. It needs float32. How
    far it goes is a row's own, and padding has no say: so a row's part is the same however the
    batch is cut.
    """
    assert trajectory.step is not None
    state = trajectory.states[-1]
    if trajectory.segments_BT is not None:
        segments_BT = trajectory.segments_BT
    direction = draws.normal("jacobian", state.shape[1:]).to(state)
    length_B11 = STEP * _lengths(state.detach(), segments_BT)[:, None, None]
    moved = trajectory.step(state + length_B11 * direction) - trajectory.step(state)
    return row_means((moved / length_B11).square().mean(dim=-1), segments_BT).mean()


def _lengths(state: Tensor, segments_BT: Tensor) -> Tensor:
    """Root mean square of a state over the tokens of each row, `[B]`."""
    squared_B = row_means(state.float().square().mean(dim=-1), segments_BT)
    return squared_B.sqrt().clamp(min=LEAST_LENGTH).to(state.dtype)


def consistency_loss(short: Tensor, long: Tensor, targets: Targets) -> Tensor:
    """Return the weighted sum of squared distances per channel, the long pass being the goal."""
    apart_N = (targets.at(short) - targets.at(long).detach()).float().square().mean(dim=-1)
    return (apart_N * targets.weights_N).sum()


@dataclass(frozen=True)
class ExtraPass:
    """A further pass of a training step.

    Attributes:
        loops: its loop count.
        window: last loops that are differentiated; None is the depth's own.
    """

    loops: int
    window: int | None = None


def progressive_pass(draws: Draws, loops: int) -> ExtraPass:
    """Draw how many loops run forward only, and how many are differentiated after them."""
    before = _uniform(draws.key("progressive start"), 0, loops - 1)
    after = _uniform(draws.key("progressive end"), 1, loops - before)
    return ExtraPass(before + after, after)


def short_pass(draws: Draws, loops: int) -> ExtraPass:
    """Draw fewer loops; of one there are none fewer."""
    return ExtraPass(_uniform(draws.key("short"), 1, max(1, loops - 1)))


def _uniform(key: int, least: int, most: int) -> int:
    return least + key_of(key) % (most - least + 1)
