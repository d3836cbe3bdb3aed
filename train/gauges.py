"""How far a step moves the weights, and how fast and at what cost in energy steps are made."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from data.batch import Batch
from eval.energy import EnergyMeter
from eval.machine import synchronize

from .callbacks import Recorder
from .gpus import known_gpu
from .module import PretrainModule
from .optim import hidden_matrices
from .sharding import whole


class UpdateRatio:
    """The size of an update over the size of the weights before it, of two kinds of weights.

    The weights are copied into the CPU's memory, so that no GPU needs more than it did.

    Args:
        module: whose update is about to be made.
    """

    def __init__(self, module: PretrainModule) -> None:
        hidden = {id(parameter) for _, parameter in hidden_matrices(module.net)}
        trained = [parameter for parameter in module.net.parameters() if parameter.requires_grad]
        self._kinds = {
            "matrices": [(p, _copied(p)) for p in trained if id(p) in hidden],
            "rest": [(p, _copied(p)) for p in trained if id(p) not in hidden],
        }

    def measure(self) -> dict[str, float]:
        """Return the ratios, once the update is made; all processes must come here."""
        found: dict[str, float] = {}
        for kind, pairs in self._kinds.items():
            if pairs:
                update, weights = _squares(pairs)
                found[f"update_ratio_{kind}"] = math.sqrt(update / weights) if weights else 0.0
        return found


def _local(parameter: Tensor) -> Tensor:
    """A weight, or of a sharded one this process's part of it."""
    x = parameter.detach()
    return x.to_local() if isinstance(x, DTensor) else x


def _copied(parameter: Tensor) -> Tensor:
    return _local(parameter).to("cpu", copy=True)


def _squares(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the sums of squares of the updates and of the weights before, over all shards."""
    first = pairs[0][0]
    sums = torch.zeros(2, device=_local(first).device)
    for parameter, before in pairs:
        now = _local(parameter)
        old = before.to(now.device)
        sums += torch.stack([(now - old).square().sum(), old.square().sum()]).to(sums)
    if isinstance(first, DTensor):
        parts = [Partial() if cut.is_shard() else Replicate() for cut in first.placements]
        sums = whole(DTensor.from_local(sums, first.device_mesh, parts, run_check=False))
    update, weights = sums.tolist()
    return update, weights


class Throughput:
    """Tokens a second, of all processes and of each, and what of the device's peak that is.

    What lies between steps (records, validation, saving, evaluation) is left out, and so is the
    first step of a process, which may compile. Of one process, its forward passes are timed: in the
    rest of a step it waits for the others.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._meter = EnergyMeter(device)
        self._steps, self._began, self._forward_began = 0, 0.0, 0.0
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._seconds, self._tokens, self._counted = 0.0, 0, 0
        self._forward_seconds, self._forward_tokens = 0.0, 0
        self._joules: float | None = None

    def begin_step(self) -> None:
        """A step's first batch is there."""
        if self._joules is None:
            self._joules = self._meter.joules()
        self._began = time.perf_counter()

    def begin_forward(self) -> None:
        """A timed forward pass begins."""
        synchronize(self.device.type)
        self._forward_began = time.perf_counter()

    def end_forward(self, tokens: int) -> None:
        """It has ended."""
        synchronize(self.device.type)
        self._forward_seconds += time.perf_counter() - self._forward_began
        self._forward_tokens += tokens

    def end_step(self, tokens: int) -> None:
        """A step's update is made."""
        synchronize(self.device.type)
        self._steps += 1
        if self._steps == 1:
            self._joules = None
            return
        self._seconds += time.perf_counter() - self._began
        self._tokens, self._counted = self._tokens + tokens, self._counted + 1

    def measure(self, module: PretrainModule, flops: float | None) -> dict[str, float]:
        """Return the rates since the last time; all processes must come here.

        Args:
            module: its trainer knows the precision.
            flops: training FLOPs of a step, of all processes; None where that isn't known.
        """
        joules, mark = self._meter.joules(), self._joules
        spent = math.nan if joules is None or mark is None else joules - mark
        speed = self._forward_tokens / self._forward_seconds if self._forward_seconds else math.nan
        mine = [self._seconds, self._tokens, speed, spent]
        gathered = _gathered(torch.tensor(mine, dtype=torch.float64, device=self.device))
        seconds, tokens, speeds, energies = gathered.unbind(1)
        steps = self._counted
        self._begin_interval()
        if not steps:
            return {}
        found = {
            "tokens_per_second": float(tokens.sum() / seconds.max()),
            "forward_tokens_per_second_slowest_rank": float(speeds.min()),
            "forward_tokens_per_second_fastest_rank": float(speeds.max()),
            "tokens_per_joule": float(tokens.sum() / energies.sum()),
        }
        if flops is not None and (peak := self._peak(module)) is not None:
            found["mfu"] = flops * steps / float(seconds.max()) / (peak * len(seconds))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _peak(self, module: PretrainModule) -> float | None:
        """FLOP/s that the maker states of such a device; None of a CPU, which states none."""
        if self.device.type != "cuda":
            return None
        gpu = known_gpu(torch.cuda.get_device_name(self.device))
        return None if gpu is None else gpu.rate(module.trainer.precision == "bf16-mixed")


def _gathered(mine: Tensor) -> Tensor:
    """Stack what each process has; all of them must come here."""
    if not dist.is_initialized():
        return mine[None]
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts)


class Gauges(L.Callback):
    """Measures update ratios and throughput at some steps; stands before the recorder.

    Args:
        run: the run's folder, whose cost.json says what a step costs.
        every: steps between measurements; 0 is none.
        recorder: is told the numbers.
    """

    def __init__(self, run: Path, every: int, recorder: Recorder) -> None:
        self.run, self.every, self.recorder = run, every, recorder
        self._throughput: Throughput | None = None
        self._ratio: UpdateRatio | None = None
        self._tokens = self._batch_tokens = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the device."""
        self._throughput = Throughput(pl_module.device) if self.every else None

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether the step under way is measured."""
        return bool(self.every) and (trainer.global_step + 1) % self.every == 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clocks."""
        if self._throughput is None:
            return
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._throughput.begin_step()
            self._tokens = 0
        self._batch_tokens = int((batch.segments_BT >= 0).sum())
        self._tokens += self._batch_tokens
        if self._due(trainer):
            self._throughput.begin_forward()

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Stop the forward pass's clock."""
        if self._throughput is not None and self._due(trainer):
            self._throughput.end_forward(self._batch_tokens)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Remember the weights."""
        assert isinstance(pl_module, PretrainModule)
        if self._due(trainer):
            self._ratio = UpdateRatio(pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Tell the recorder, where the step is measured."""
        if self._throughput is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, PretrainModule)
        self._throughput.end_step(self._tokens)
        if trainer.global_step % self.every:
            return
        found = self._throughput.measure(pl_module, self._flops())
        if self._ratio is not None:
            found |= self._ratio.measure()
            self._ratio = None
        for name, value in found.items():
            self.recorder.note(name, value)

    def _flops(self) -> float | None:
        """Training FLOPs of a step, on the mean of the run; None where the file isn't here."""
        try:
            cost = json.loads((self.run / "cost.json").read_text())
        except OSError:
            return None
        return cost["train_flops"] / cost["train_steps"]
