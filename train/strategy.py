"""The strategies of a run, as Lightning takes them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from typing_extensions import override

from .objective import Objective
from .parallel_config import ParallelConfig
from .sharding import shard

GATHERS_ANYWHERE = "cpu:gloo,cuda:nccl"
"""Shards may lie in the CPU's memory while their processes compute on GPUs."""


def strategy_of(config: ParallelConfig) -> "str | ShardedStrategy":
    """Return what runs the processes of these settings."""
    kind = config.resolved_strategy
    if kind == "fsdp2":
        return ShardedStrategy(config)
    # A stage's frozen parts, and the norm between loops where one is drawn, have no gradient.
    return "auto" if kind == "single" else "ddp_find_unused_parameters_true"


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, or within each of several replicas.

    Args:
        config: settings, with the accelerator resolved.
    """

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__(
            data_parallel_size=config.processes,
            tensor_parallel_size=1,
            process_group_backend=GATHERS_ANYWHERE if config.accelerator == "cuda" else None,
        )
        self.config = config

    def shard(self, objective: Objective, hold: bool) -> None:
        """Shard an objective, whose weights are drawn; see `sharding.shard`."""
        shard(objective, objective.backbone, self._weights_mesh(), self.config.offload, hold)

    def _weights_mesh(self) -> DeviceMesh:
        """Return the processes that hold the weights together, by replica where there are some."""
        replicas = self.config.replicas
        if replicas == 1:
            return self.device_mesh["data_parallel"]
        shape = (replicas, self.config.processes // replicas)
        names = ("replicate", "shard")
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @override
    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Draw weights on the process's own device, as the other strategies do."""
        with super().tensor_init_context(empty_init), torch.device(self.root_device):
            yield

    @override
    def model_to_device(self) -> None:
        """Shards lie where they belong already."""
