"""Settings of where a run trains, and which of them can't be had together."""

from dataclasses import dataclass

STRATEGIES = ("auto", "single", "ddp", "fsdp2")
ACCELERATORS = ("auto", "cpu", "cuda")
RECOMPUTE = ("none", "blocks")


@dataclass
class ParallelConfig:
    """Where a run trains; nothing here changes what is learnt, but for rounding.

    Attributes:
        accelerator: auto, cpu or cuda.
        strategy: single (one process), ddp (each process holds all weights), fsdp2 (each holds a
            shard of weights, gradients and averages), or auto: single for one process, else ddp.
        devices: processes on this machine, one device each.
        nodes: machines, each with as many processes.
        replicas: of fsdp2: groups of processes that hold all weights together; each is as large as
            the others, and as a rule one node. 1 shards over all processes.
        restarts: times that all processes go on from the newest checkpoint after one has died.
        offload: of fsdp2 on cuda: keep weights, gradients and averages in the CPU's memory.
        recompute: what is computed again in the backward pass instead of kept: none or blocks.
        accumulate: micro-batches that make up a step.
        threads: CPU threads of each process; 0 leaves torch's choice.
        runs: runs of a sweep (-m) that train side by side, each in a process of its own; 1 trains
            them one by one.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: int = 1
    nodes: int = 1
    replicas: int = 1
    restarts: int = 0
    offload: bool = False
    recompute: str = "none"
    accumulate: int = 1
    threads: int = 0
    runs: int = 1

    @property
    def processes(self) -> int:
        """Processes that train together, on all machines."""
        return self.devices * self.nodes

    @property
    def resolved_strategy(self) -> str:
        """The strategy; auto is single for one process, else ddp."""
        if self.strategy != "auto":
            return self.strategy
        return "single" if self.processes == 1 else "ddp"

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        for name, allowed in (
            ("accelerator", ACCELERATORS),
            ("strategy", STRATEGIES),
            ("recompute", RECOMPUTE),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"parallel.{name}={getattr(self, name)} is not known: choose "
                    f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                )
        least = {"threads": 0, "restarts": 0}
        names = ("devices", "nodes", "replicas", "restarts", "accumulate", "threads", "runs")
        for name in names:
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"parallel.{name}={getattr(self, name)} must be at least {least.get(name, 1)}"
                )
        self._check_strategy()

    def _check_strategy(self) -> None:
        """Refuse what a strategy can't do."""
        if self.strategy == "single" and self.processes > 1:
            raise ValueError(
                f"parallel.strategy=single is one process, but parallel.devices={self.devices} x "
                f"parallel.nodes={self.nodes} are {self.processes}: choose auto, ddp or fsdp2"
            )
        sharded = self.resolved_strategy == "fsdp2"
        for name, value, off in (("replicas", self.replicas, 1), ("offload", self.offload, False)):
            if value != off and not sharded:
                raise ValueError(
                    f"parallel.{name}={str(value).lower()} is for sharded weights, but parallel."
                    f"strategy={self.strategy} shards none: choose fsdp2, or leave it out"
                )
        if self.processes % self.replicas:
            raise ValueError(
                f"parallel.replicas={self.replicas} can't be cut from {self.processes} processes "
                "(parallel.devices x parallel.nodes) in equal groups: choose a divisor"
            )
        if self.offload and self.accelerator == "cpu":
            raise ValueError(
                "parallel.offload=true keeps a GPU's weights in the CPU's memory, but parallel."
                "accelerator=cpu has them there: leave it out"
            )
