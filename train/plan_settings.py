"""What a plan is asked beside the run's own settings: the cluster, and what is assumed of it."""

from dataclasses import dataclass, field

from .parallel_config import ParallelConfig


@dataclass
class PlanSettings:
    """Settings of a plan.

    Attributes:
        world: GPUs of the run, one process each; null is parallel.devices x parallel.nodes.
        gpu: their kind (see `train.gpus`).
        gpus_per_node: GPUs that share a node's fast links, where `world` is spread over nodes.
        rows: rows of a GPU's micro-batch; 0 is trainer.rows_per_step over GPUs and
            parallel.accumulate.
        vocab: rows of the embedding; 0 is the tokenizer's of the corpus.
        flash_attn: the flash-attn package is installed on the GPUs.
        usable: share of a GPU's memory to fill; the rest is for the CUDA context, the buffers of
            NCCL and fragmentation. An assumption.
        peak_fraction: model FLOP/s reached over the peak rate. An assumption.
        link_fraction: bytes/s reached over the links' rate. An assumption.
        overlap: share of a step's computing that communication can hide behind. An assumption.
        hop_us: microseconds that each doubling of a group adds to a collective. An assumption.
        price: money for a GPU-hour; 0 leaves money out.
        output: JSON file; empty is plan.json in a folder of the experiment.
        check: train a few steps on the GPU at hand and compare.
        table: write the table of docs/scaling.md to `output` instead.
        families: backbones of the table.
        sizes: their sizes.
        worlds: numbers of GPUs.
    """

    world: int | None = None
    gpu: str = "h100"
    gpus_per_node: int = 8
    rows: int = 0
    vocab: int = 0
    flash_attn: bool = False
    usable: float = 0.92
    peak_fraction: float = 0.35
    link_fraction: float = 0.7
    overlap: float = 0.7
    hop_us: float = 10.0
    price: float = 0.0
    output: str = ""
    check: bool = False
    table: bool = False
    families: list[str] = field(default_factory=lambda: ["transformer", "gdn_hybrid", "looped"])
    sizes: list[str] = field(default_factory=lambda: ["150m", "1b", "7b"])
    worlds: list[int] = field(default_factory=lambda: [1, 8, 64])

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.world is not None and self.world < 1:
            raise ValueError(f"world={self.world} must be at least 1")
        for name, least in (
            ("gpus_per_node", 1),
            ("rows", 0),
            ("vocab", 0),
            ("price", 0),
            ("hop_us", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("usable", "peak_fraction", "link_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and at most 1")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap={self.overlap} must lie in [0, 1]")


@dataclass(frozen=True)
class Layout:
    """How GPUs share the work.

    Attributes:
        strategy: single, ddp or fsdp2.
        world: GPUs.
        replicas: copies of the weights.
        shards: pieces that a copy is cut into.
        per_node: GPUs that share fast links.
    """

    strategy: str
    world: int
    replicas: int
    shards: int
    per_node: int = 8


def spread(world: int, per_node: int) -> tuple[int, int]:
    """Return devices and nodes of so many GPUs; what fills no whole nodes is taken for one."""
    return (world, 1) if world % per_node else (per_node, world // per_node)


def layout_of(parallel: ParallelConfig) -> Layout:
    """Return how the processes of a run share the work."""
    strategy, world = parallel.resolved_strategy, parallel.processes
    replicas = parallel.replicas if strategy == "fsdp2" else world
    return Layout(strategy, world, replicas, world // replicas, parallel.devices)
