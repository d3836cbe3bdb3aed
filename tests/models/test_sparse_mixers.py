"""NSA and MoBA against their papers' equations, by loops over documents and positions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.mixer import MixerConfig, Site
from models.mixers.attention import AttentionConfig
from models.mixers.block_sparse import BlockSparse
from models.mixers.moba import MixtureOfBlocks, MixtureOfBlocksConfig
from models.mixers.nsa import NativeSparse, NativeSparseConfig
from models.ops.sparse import SparseView, TokenView
from models.ops.sparse_blocks import Blocks
from models.ops.twin import step_by_step
from tests.models.cases import LENGTH, ROUNDING, SITE, build_mixer

Heads = tuple[Tensor, Tensor, Tensor]


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, SITE.dim, dtype=torch.float64)


def heads_of(mixer: BlockSparse, x_TD: Tensor) -> Heads:
    """Queries `[T, H, K]`, keys and values `[T, G, K]` of one document, without mixer's code."""
    q, k, v = mixer.qkv(x_TD).split([mixer.inner, mixer.kv_inner, mixer.kv_inner], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, mixer.head_dim)) for part in (q, k, v))
    q, k = (
        x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for x, norm in zip((q, k), mixer.norms, strict=True)
    )
    return turned(mixer, q), turned(mixer, k), v


def turned(mixer: BlockSparse, x_THK: Tensor) -> Tensor:
    if mixer.settings.rope_base is None:
        return x_THK
    half = mixer.head_dim // 2
    rates = mixer.settings.rope_base ** (-torch.arange(half).double() / half)
    angles = torch.arange(len(x_THK)).double()[:, None, None] * rates
    pairs = torch.complex(x_THK[..., :half], x_THK[..., half:])
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of one query `[K]` over `[S, K]`."""
    weights = torch.exp(keys @ q / math.sqrt(len(q)))
    return weights @ values / weights.sum()


def tokens_of(blocks: list[int], now: int, size: int) -> list[int]:
    return [
        t for block in sorted(blocks) for t in range(block * size, (block + 1) * size) if t <= now
    ]


def best(scores: dict[int, float], most: int) -> list[int]:
    return sorted(scores, key=lambda block: (-scores[block], block))[:most]


def moba_of_one(mixer: MixtureOfBlocks, x_TD: Tensor) -> Tensor:
    """MoBA (arXiv 2502.13189, equations 2 to 6) of one document."""
    (q, k, v), size = heads_of(mixer, x_TD), mixer.config.block_size
    group, outputs = mixer.heads // mixer.kv_heads, []
    for t in range(len(x_TD)):
        own, heads = t // size, []
        for head in range(mixer.heads):
            keys, values = k[:, head // group], v[:, head // group]
            scores = {
                i: float(q[t, head] @ keys[i * size : (i + 1) * size].mean(0)) for i in range(own)
            }
            chosen = [*best(scores, mixer.config.num_selected - 1), own]
            seen = tokens_of(chosen, t, size)
            heads.append(attend(q[t, head], keys[seen], values[seen]))
        outputs.append(mixer.output(torch.cat(heads)))
    return torch.stack(outputs)


def compressed(network: Any, x_TK: Tensor, size: int) -> list[Tensor]:
    """Each complete block as one vector (arXiv 2502.11089, equation 7)."""
    blocks = [x_TK[i * size : (i + 1) * size].flatten() for i in range(len(x_TK) // size)]
    inner, outer = network.inner, network.outer
    return [outer.weight @ F.silu(inner.weight @ block + inner.bias) for block in blocks]


def nsa_of_one(mixer: NativeSparse, x_TD: Tensor) -> Tensor:
    """NSA (arXiv 2502.11089, equations 5 to 11) of one document."""
    (q, k, v), config = heads_of(mixer, x_TD), mixer.config
    size, group, outputs = config.block_size, mixer.heads // mixer.kv_heads, []
    networks: Any = mixer.compress
    for t in range(len(x_TD)):
        heads: list[Tensor] = []
        gates = torch.sigmoid(mixer.gate.weight @ x_TD[t]).view(3, mixer.heads)
        for shared in range(mixer.kv_heads):
            keys, values = k[:, shared], v[:, shared]
            block_keys = compressed(networks[0], keys[: t + 1], size)
            block_values = compressed(networks[1], values[: t + 1], size)
            members = range(shared * group, (shared + 1) * group)
            importance = dict.fromkeys(range(t // size), 0.0)
            for head in members:
                if block_keys:
                    scores = torch.stack(block_keys) @ q[t, head] / math.sqrt(mixer.head_dim)
                    for i in importance:
                        importance[i] += float(scores.softmax(0)[i])
            if importance:
                importance[0] = math.inf
            chosen = [*best(importance, config.num_selected - 1), t // size]
            seen, near = tokens_of(chosen, t, size), slice(max(0, t + 1 - config.window), t + 1)
            for head in members:
                query, nothing = q[t, head], torch.zeros_like(q[t, head])
                branches = (
                    attend(query, torch.stack(block_keys), torch.stack(block_values))
                    if block_keys
                    else nothing,
                    attend(query, keys[seen], values[seen]),
                    attend(query, keys[near], values[near]),
                )
                heads.append(
                    sum((g[head] * b for g, b in zip(gates, branches, strict=True)), nothing)
                )
        outputs.append(mixer.output(torch.cat(heads)))
    return torch.stack(outputs)


CASES: dict[str, tuple[MixerConfig, Callable[[Any, Tensor], Tensor]]] = {
    "moba": (MixtureOfBlocksConfig(block_size=3, num_selected=3), moba_of_one),
    "moba grouped": (
        MixtureOfBlocksConfig(block_size=2, num_selected=2, num_kv_heads=2),
        moba_of_one,
    ),
    "moba single tokens": (MixtureOfBlocksConfig(block_size=1, num_selected=4), moba_of_one),
    "nsa": (NativeSparseConfig(block_size=3, num_selected=3, window=4), nsa_of_one),
    "nsa grouped": (
        NativeSparseConfig(block_size=2, num_selected=4, window=3, num_kv_heads=2),
        nsa_of_one,
    ),
    "nsa default": (NativeSparseConfig(num_kv_heads=1), nsa_of_one),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_sparse_mixers_are_the_papers(case: str, segments: Tensor) -> None:
    config, of_one = CASES[case]
    mixer, x = build_mixer(config), inputs()
    expected = torch.zeros_like(x)
    for row, ids in enumerate(segments):
        for document in ids.unique():
            own = ids == document
            expected[row, own] = of_one(mixer, x[row, own])
    torch.testing.assert_close(mixer(x, segments)[0], expected, **ROUNDING)


def test_moba_with_all_blocks_is_attention(segments: Tensor) -> None:
    x = inputs()
    sparse: Any = build_mixer(MixtureOfBlocksConfig(block_size=4, num_selected=6))
    dense: Any = build_mixer(AttentionConfig())
    dense.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(x, segments)[0], dense(x, segments)[0], **ROUNDING)


def test_only_chosen_blocks_are_read() -> None:
    """The last query reads two of five blocks: as many keys have a gradient by its output."""
    mixer: Any = build_mixer(MixtureOfBlocksConfig(block_size=4, num_selected=2, num_heads=1))
    x = inputs(20).requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(x)[0][0, -1].sum(), x)
    read = gradient[0].abs().sum(-1).nonzero()[:, 0].tolist()
    assert len(read) == 8 and read[-4:] == [16, 17, 18, 19]
    assert {t // 4 for t in read[:4]} == {read[0] // 4}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_equal_scores_are_settled_by_order(most: int) -> None:
    """Earlier blocks win, for all queries at once and for each alone."""
    positions = torch.arange(12)[None]
    blocks = Blocks(3, positions, None, shared=True)
    plain = torch.zeros(1, 12, 1, 4)
    view = SparseView(blocks, plain, plain, plain[:, :4], plain[:, :4], None)
    at_once = view.select(view.score(plain), most)
    for t in range(12):
        token = TokenView(view, t)
        alone = token.select(token.score(plain[:, :1]), most)
        picked = alone.slots_BGPTM[alone.real_BGPTM].tolist()
        assert picked == list(range(min(most, t // 3)))
        row = at_once.slots_BGPTM[0, 0, 0, t][at_once.real_BGPTM[0, 0, 0, t]]
        assert row.tolist() == picked


def test_blocks_are_counted_from_each_documents_start() -> None:
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    blocks = Blocks(3, positions, segments)
    assert blocks.new == 4, "as many slots as blocks could be complete, wherever documents begin"
    assert blocks.members_BCJ[0, :3].tolist() == [[0, 1, 2], [5, 6, 7], [8, 9, 10]]
    assert blocks.index_BN[0, :3].tolist() == [0, 0, 1]
    shown = blocks.shown_BTN[0].int()
    assert shown[[1, 2, 4, 6, 7, 11]].tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]
    assert blocks.earlier_BTN[0, [2, 4, 7, 8, 11]].int().tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]


def decoding_flops(config: MixerConfig, context: int) -> int:
    with torch.device("meta"):
        mixer = config.build(SITE)
        state = mixer.init_state(1, context, "meta", torch.float32)
        _, state = mixer(torch.empty(1, context - 1, SITE.dim), None, state)
        with step_by_step(), FlopCounterMode(display=False) as counter:
            mixer(torch.empty(1, 1, SITE.dim), None, state)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [
        NativeSparseConfig(num_kv_heads=2),
        NativeSparseConfig(block_size=4, num_selected=5, window=7),
        MixtureOfBlocksConfig(),
        MixtureOfBlocksConfig(block_size=5, num_selected=3, num_kv_heads=1),
    ],
    ids=["nsa", "nsa small", "moba", "moba small"],
)
def test_cost_at_long_contexts_is_counted(config: MixerConfig) -> None:
    mixer = config.build(SITE)
    for context in (15, 16, 64, 200, 201, 333):
        assert mixer.cost(context).flops == decoding_flops(config, context)


def test_costs_are_the_keys_that_are_read() -> None:
    moba = MixtureOfBlocksConfig(block_size=16, num_selected=4).build(SITE)
    projections = 2 * 16 * 4 * 16
    assert moba.cost(10).flops == projections + 4 * 16 * 10
    # Three blocks and the 8 tokens of its own; scores of 62 complete blocks.
    assert moba.cost(1000).flops == projections + 2 * 16 * 62 + 4 * 16 * (3 * 16 + 8)
    nsa = NativeSparseConfig(block_size=8, num_selected=4, window=32).build(SITE)
    plain = projections + 2 * 16 * 12
    read = 125 + (3 * 8 + 1) + 32  # summaries; three blocks and one token; the window
    assert nsa.cost(1001).flops == plain + 4 * 16 * read
    assert nsa.cost(1000).flops - plain - 4 * 16 * (read + 7) == 2 * 4 * 2 * (8 * 4 * 4 + 4 * 4)


def test_summaries_are_part_of_the_state() -> None:
    nsa = NativeSparseConfig(block_size=8, num_kv_heads=2).build(SITE)
    assert nsa.cost(100).state_bytes == 4 * 2 * (2 * 4 * 100 + 12 * 2 * 4)
    moba = MixtureOfBlocksConfig(block_size=8, num_kv_heads=2).build(SITE)
    assert moba.cost(100).state_bytes == 4 * 2 * (2 * 4 * 100 + 12 * 4)


def test_selection_of_long_documents_survives_decoding() -> None:
    """Far more blocks than are selected, over packed rows, read in pieces and one by one."""
    for config in (
        NativeSparseConfig(block_size=4, num_selected=3, window=5, num_kv_heads=2),
        MixtureOfBlocksConfig(block_size=4, num_selected=3),
    ):
        mixer, x = build_mixer(config), inputs(120)
        segments = torch.arange(120).ge(37).long().expand(2, -1)
        for ids in (None, segments):
            expected = mixer(x, ids)[0]
            state, outputs, start = mixer.init_state(2, 120, "cpu", torch.float64), [], 0
            for size in (30, 1, 1, 13, *[1] * 40, 20, *[1] * 15):
                piece = slice(start, start + size)
                y, state = mixer(x[:, piece], None if ids is None else ids[:, piece], state)
                outputs.append(y)
                start += size
            torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **ROUNDING)
            with step_by_step():
                torch.testing.assert_close(mixer(x, ids)[0], expected, **ROUNDING)


@pytest.mark.parametrize("config", [NativeSparseConfig(), MixtureOfBlocksConfig()])
def test_initialisation_draws_anew(config: MixerConfig) -> None:
    mixer: Any = config.build(Site(64, 16))
    before = {name: p.clone() for name, p in mixer.named_parameters()}
    mixer.reset_parameters()
    for name, parameter in mixer.named_parameters():
        fixed = parameter.dim() < 2 or name.startswith("output")
        assert torch.equal(parameter, before[name]) == fixed, name
    assert mixer(torch.randn(1, 40, 64))[0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NativeSparseConfig(block_size=0), "block_size=0 must be at least 1 token"),
        (NativeSparseConfig(window=0), "window=0 must be at least 1 token"),
        (MixtureOfBlocksConfig(num_selected=0), "num_selected=0 must be at least 1 block"),
        (MixtureOfBlocksConfig(num_kv_heads=3), "num_kv_heads=3 doesn't divide num_heads=4"),
        (MixtureOfBlocksConfig(head_dim=3, num_heads=2), "head_dim=3 is odd"),
    ],
)
def test_impossible_settings_are_named(config: MixerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.build(SITE)
