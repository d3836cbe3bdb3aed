"""Mixture of block attention (MoBA, arXiv 2502.13189, section 2.2).

    s_ti = q_t . mean(K_i),  o_t = softmax(q_t K[I]^T) V[I],
    I = the query's own block up to itself, and the k - 1 earlier blocks of highest s_ti

Blocks are counted from each document's start. Every query head selects for itself; there are no
parameters besides attention's, and no gradient through the selection.

Legend: B batch, T time, C blocks, J tokens of a block, D width, G key/value heads, K head dim.
"""

from dataclasses import dataclass

from torch import Tensor

from ..cost import Cost, linear_flops
from ..layers import parameter_bytes
from ..mixer import Site
from ..ops.sparse import SparseView, TokenView
from .block_sparse import BlockSparse, BlockSparseConfig


@dataclass
class MixtureOfBlocksConfig(BlockSparseConfig):
    """Settings of mixture of block attention; see `BlockSparseConfig`."""

    kind: str = "moba"
    block_size: int = 16
    num_selected: int = 4

    def build(self, site: Site) -> "MixtureOfBlocks":
        """Make the module; raises ValueError where heads or blocks don't work out."""
        return MixtureOfBlocks(self, site.dim, self.head_sizes(site), summary_width=0)


class MixtureOfBlocks(BlockSparse):
    """Softmax attention over the blocks whose mean key suits the query best."""

    def __init__(
        self,
        config: MixtureOfBlocksConfig,
        dim: int,
        sizes: tuple[int, int, int],
        summary_width: int,
    ) -> None:
        super().__init__(config, dim, sizes, summary_width)
        self.config = config
        self.reset_parameters()

    def summarise(self, k_BCJGK: Tensor, v_BCJGK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean key of each block; values are never read from summaries."""
        return k_BCJGK.mean(dim=2), v_BCJGK[:, :, 0, :, :0]

    def read(self, q: Tensor, x_BTD: Tensor, view: SparseView | TokenView) -> Tensor:
        """Attend over the chosen blocks, every head over its own."""
        kernel = view.kernel("moba", q) if isinstance(view, SparseView) else None
        if kernel is not None and isinstance(view, SparseView):
            most = {"num_selected": self.config.num_selected, **view.kernel_options}
            return kernel(q, view.keys_BSGK, view.values_BSGK, **most)
        chosen = view.select(view.score(q).detach(), self.config.num_selected - 1)
        return view.read_selected(q, chosen)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, scores of complete blocks, and the keys it reads."""
        flops = linear_flops(self.dim, self.inner + 2 * self.kv_inner)
        flops += linear_flops(self.inner, self.dim)
        flops += 2 * self.inner * (context // self.config.block_size)
        flops += 4 * self.inner * self.keys_read(context)
        return Cost(flops, parameter_bytes(self), self.state_bytes(context))
