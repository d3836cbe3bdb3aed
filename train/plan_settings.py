"""What a plan is asked beside the run's own settings: the cluster, and what is assumed of it."""

from dataclasses import dataclass, field

STRATEGIES = ("auto", "single", "ddp", "fsdp2", "hybrid")
RECOMPUTES = ("none", "blocks")


@dataclass
class PlanSettings:
    """Settings of a plan.

    Attributes:
        world: GPUs of the run, one process each.
        gpu: their kind (see `train.gpus`).
        gpus_per_node: GPUs that share a node's fast links.
        strategy: single, ddp, fsdp2 (weights, gradients and averages sharded), hybrid (sharded
            within a node, copied over nodes), or auto: the first that fits but for hybrid.
        replicas: copies of a sharded run; more than one is hybrid. 0 is what the strategy says.
        recompute: none, or blocks: each block's activations are made again in the backward pass.
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

    world: int = 1
    gpu: str = "h100"
    gpus_per_node: int = 8
    strategy: str = "auto"
    replicas: int = 0
    recompute: str = "none"
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
        for name, least in (
            ("world", 1),
            ("gpus_per_node", 1),
            ("replicas", 0),
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
        for name, allowed in (("strategy", STRATEGIES), ("recompute", RECOMPUTES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not known: choose {', '.join(allowed)}"
                )
        self._validate_strategy()

    def _validate_strategy(self) -> None:
        if self.strategy == "single" and self.world > 1:
            raise ValueError(f"strategy=single is one GPU, and world={self.world}: choose ddp")
        sharded = self.strategy in ("fsdp2", "hybrid")
        if self.replicas > 1 and not sharded:
            raise ValueError(
                f"replicas={self.replicas} is of sharded runs, and strategy={self.strategy}: "
                "choose strategy=hybrid"
            )
        if sharded and self.world % self.layout(self.strategy).replicas:
            raise ValueError(
                f"replicas={self.layout(self.strategy).replicas} doesn't divide world={self.world}"
                ": choose a divisor"
            )

    def layout(self, strategy: str) -> "Layout":
        """Return how GPUs share the work under a strategy (not auto)."""
        if strategy in ("single", "ddp"):
            return Layout(strategy, self.world, self.world, 1)
        replicas = self.replicas or 1
        if strategy == "hybrid" and not self.replicas:
            replicas = max(1, self.world // self.gpus_per_node)
        name = "hybrid" if replicas > 1 else "fsdp2"
        return Layout(name, self.world, replicas, self.world // replicas)


@dataclass(frozen=True)
class Layout:
    """How GPUs share the work.

    Attributes:
        strategy: single, ddp, fsdp2 or hybrid.
        world: GPUs.
        replicas: copies of the weights.
        shards: pieces that a copy is cut into.
    """

    strategy: str
    world: int
    replicas: int
    shards: int
