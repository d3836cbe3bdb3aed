"""What a run is at a step, as tensors by name and plain facts; and how it is put back.

    model/NAME                 a parameter or buffer of the Lightning module
    optimizer/NAME/ENTRY       an entry of the optimiser's state of that parameter
    facts                      the step, Lightning's loops, the schedule, and what the module notes

A tensor may be in shards: each process has its part of it. So it can be put back into any number of
processes, however these hold the weights.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load

from eval.stored import MODEL, OPTIMIZER, Stored, StoredError

from .module import PretrainModule
from .optim import RoleOptimizer
from .storage import TensorReader


@dataclass(frozen=True)
class Snapshot:
    """A run at a step; its tensors are copies in the CPU's memory."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @classmethod
    def of(cls, trainer: L.Trainer, module: PretrainModule) -> "Snapshot":
        """Copy what there is now."""
        tensors = {f"{MODEL}/{name}": tensor for name, tensor in _model_tensors(module).items()}
        optimizer, named = _optimizer_of(trainer), dict(module.named_parameters())
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert stepped == set(named.values()), "weights are to be saved in their shards"
        state = optimizer.state
        for name, parameter in named.items():
            for entry, value in state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}/{name}/{entry}"] = value
        copies = {name: _copied(tensor) for name, tensor in tensors.items()}
        return cls(copies, _facts(trainer, module))

    @property
    def step(self) -> int:
        """The step of the run."""
        return self.facts["step"]


def restore(stored: Stored, trainer: L.Trainer, module: PretrainModule) -> None:
    """Put a checkpoint back into a run whose weights and optimiser are made; all processes.

    Raises:
        StoredError: it holds other tensors than this run.
    """
    names = set(stored.names(MODEL))
    model = _model_tensors(module)
    if names != model.keys():
        raise StoredError(f"it holds other weights: {', '.join(sorted(names ^ model.keys())[:3])}")
    optimizer = _optimizer_of(trainer)
    state = _empty_state(stored, module)
    tensors = {f"{MODEL}/{name}": tensor for name, tensor in model.items()}
    for name, entries in state.items():
        tensors |= {f"{OPTIMIZER}/{name}/{entry}": value for entry, value in entries.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=TensorReader(stored), no_dist=True)
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    optimizer.state.update({parameters[name]: entries for name, entries in state.items()})
    _restore_facts(stored.facts, trainer, optimizer)
    module.recall(stored.facts["pauca"])


def _model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and the buffers that are kept."""
    kept = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
    return {name: parameter.detach() for name, parameter in module.named_parameters()} | buffers


def _optimizer_of(trainer: L.Trainer) -> RoleOptimizer:
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, RoleOptimizer)
    return optimizer


def _empty_state(stored: Stored, module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return what the optimiser's stored state is to be read into, as its parameters are laid."""
    parameters, found = dict(module.named_parameters()), {}
    for name in stored.names(OPTIMIZER):
        owner, entry = name.rsplit("/", 1)
        if owner not in parameters:
            raise StoredError(f"it holds averages of {owner}, which is no weight of this run")
        parameter, tensor = parameters[owner], stored.tensors[f"{OPTIMIZER}/{name}"]
        if tensor.shape == tuple(parameter.shape):
            empty = torch.zeros_like(parameter, dtype=tensor.dtype, requires_grad=False)
        else:
            empty = torch.zeros(tensor.shape, dtype=tensor.dtype)  # AdamW counts steps on the CPU
        found.setdefault(owner, {})[entry] = empty
    return found


def _copied(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory; of a sharded one, of this process's part."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu")


def _facts(trainer: L.Trainer, module: PretrainModule) -> dict[str, Any]:
    (schedule,) = trainer.lr_scheduler_configs
    rates = [group["lr"] for group in _optimizer_of(trainer).param_groups]
    return {
        "step": trainer.global_step,
        "processes": trainer.world_size,
        "loops": trainer.fit_loop.state_dict(),
        "schedule": schedule.scheduler.state_dict(),
        "learning_rates": rates,
        "pauca": module.notes(),
    }


def _restore_facts(facts: dict[str, Any], trainer: L.Trainer, optimizer: RoleOptimizer) -> None:
    trainer.fit_loop.load_state_dict(facts["loops"])
    (schedule,) = trainer.lr_scheduler_configs
    schedule.scheduler.load_state_dict(facts["schedule"])
    for group, rate in zip(optimizer.param_groups, facts["learning_rates"], strict=True):
        group["lr"] = rate
