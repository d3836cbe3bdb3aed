"""Chunking beyond what every backbone promises: where chunks begin, the ratio, what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone
from models.block import Block
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.latent.chunk import Chunk, ChunkConfig
from models.latent.chunk_costs import ChunkCosts
from models.latent.chunk_router import CosineRouter, Sight, ratio_loss, straight_through
from models.ops.smoothing import smooth, smooth_reference
from models.ops.twin import step_by_step
from tests.models.cases import backbone_config, build_backbone, segments_of

VOCABULARY = 64
TEXT = [ord(c) % VOCABULARY for c in "ab  cd e"]  # spaces are 32 there too


def made(layout: str = "gdn attn", depth: Any = None, **settings: Any) -> Backbone:
    changes = {} if depth is None else {"depth": depth}
    latent = ChunkConfig(**settings)
    return build_backbone(
        backbone_config(layout, vocab_size=VOCABULARY, latent=latent, **changes)
    ).eval()


def chunks(backbone: Backbone, read: Tensor, *args: Any) -> list[list[int]]:
    found = backbone(read, *args).trajectory.chunks_BT
    assert found is not None
    return found.tolist()


def read(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape)


# Smoothing


@pytest.mark.parametrize("length", [1, 5, 32, 70])
def test_smoothing_in_blocks_equals_step_by_step(length: int) -> None:
    x, before = torch.randn(2, length, 3, dtype=torch.float64), torch.randn(2, 3).double()
    keep = torch.rand(2, length, dtype=torch.float64)
    keep[0, ::4], keep[1, 1::7] = 0.0, 1.0
    inputs = [value.requires_grad_() for value in (x, keep, before)]
    fast, plain = smooth(*inputs), smooth_reference(*inputs)
    torch.testing.assert_close(fast, plain)
    weights = torch.randn_like(plain)
    of_fast, of_plain = (torch.autograd.grad((y * weights).sum(), inputs) for y in (fast, plain))
    for actual, expected in zip(of_fast, of_plain, strict=True):
        unset = keep == 0 if actual.shape == keep.shape else None  # a constant, by construction
        if unset is not None:
            actual, expected = actual.masked_fill(unset, 0), expected.masked_fill(unset, 0)
        torch.testing.assert_close(actual, expected)


def test_smoothing_by_hand() -> None:
    x = torch.tensor([[[8.0], [4.0], [2.0]]])
    y = smooth(x, torch.tensor([[0.0, 0.5, 0.25]]), torch.tensor([[99.0]]))
    assert y.flatten().tolist() == [8.0, 6.0, 3.0]


# Where chunks begin


def test_a_stride_restarts_in_every_document() -> None:
    backbone = made(router="stride", ratio=3)
    segments = segments_of([[-2, 7, 1], [4, 6]])
    expected = [[0, 0, 1, 0, 0, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0, 0, 1, 0, 0]]
    assert chunks(backbone, read(2, 10), segments) == expected


def test_strides_nest() -> None:
    """Every second byte begins a chunk, and every second chunk one of the next level."""
    backbone = made(router="stride", ratio=2, levels=2)
    assert chunks(backbone, read(1, 9)) == [[2, 0, 1, 0, 2, 0, 1, 0, 2]]


def test_words_begin_after_spaces() -> None:
    backbone = made(router="space")
    # a, then c after two spaces, then e
    assert chunks(backbone, torch.tensor([TEXT])) == [[1, 0, 0, 0, 1, 0, 0, 1]]
    state = backbone.init_state(1, 20, dtype=torch.float64)
    found = [chunks(backbone, torch.tensor([[byte]]), None, state)[0][0] for byte in TEXT]
    assert found == [1, 0, 0, 0, 1, 0, 0, 1]


def test_similar_neighbours_stay_together() -> None:
    """Unlike ones, and the first of a document, begin a chunk: p = (1 - cos) / 2."""
    router = CosineRouter(2)
    h = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    sight = Sight(h, torch.zeros(1, 2), torch.tensor([[0, 1, 2, 3]]), None, torch.zeros(1).long())
    torch.testing.assert_close(router(sight), torch.tensor([[1.0, 0.0, 1.0, 0.5]]))


def test_the_confidence_is_one_with_a_gradient() -> None:
    p = torch.tensor([[0.9, 0.3]], requires_grad=True)
    sure = straight_through(p, p >= 0.5)
    assert sure.tolist() == [[1.0, 1.0]]
    assert torch.autograd.grad(sure.sum(), p)[0].tolist() == [[1.0, -1.0]]


def test_a_new_level_passes_chunks_on() -> None:
    """The residual begins at zero, so a byte says what its chunk says, through the decoder."""
    with torch.random.fork_rng():
        backbone = Backbone(backbone_config("attn", latent=ChunkConfig()))
    latent = backbone.latent
    assert isinstance(latent, Chunk)
    (level,) = latent.each()
    router = level.router
    assert isinstance(router, CosineRouter)
    assert torch.equal(router.query.weight, torch.eye(16))
    assert torch.equal(router.key.weight, torch.eye(16))
    assert not level.residual.weight.any()


def test_only_rows_with_a_new_chunk_run_the_depth() -> None:
    backbone, ran = made("attn", router="space", encoder="attn"), []
    backbone.depth.block(0).register_forward_hook(lambda _, args, out: ran.append(len(args[0])))
    state = backbone.init_state(3, 20, dtype=torch.float64)
    rows = torch.tensor([[1, 32, 2, 3], [1, 2, 32, 3], [32, 2, 32, 32]])
    for byte in rows.T:
        backbone(byte[:, None], None, state)
    # All begin; row 2 after its space; row 0 likewise; row 1; row 2 ends in spaces.
    assert ran == [3, 1, 1, 1]


@pytest.mark.parametrize("layout", ["attn", "gdn", "gdn attn", "mamba2 swa", "rwkv7 nsa"])
def test_it_decodes_over_any_stack(layout: str) -> None:
    backbone, tokens = made(layout, decoder_layers=2), read(2, 12)
    state = backbone.init_state(2, 12, dtype=torch.float64)
    pieces = (tokens[:, :5], *tokens[:, 5:].split(1, dim=1))
    found = [backbone(piece, None, state).hidden_BTD for piece in pieces]
    expected = backbone(tokens).hidden_BTD
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-10, rtol=1e-10)


# The ratio


def test_the_ratio_loss_by_hand() -> None:
    """N = 4. Two of four begin, G = 0.5: 4/3 (0.5 0.5 + 3 0.5 0.5); a quarter, evenly: one."""
    positions = torch.arange(4)[None]
    begins = torch.tensor([[True, False, True, False]])
    p = torch.tensor([[1.0, 0.1, 0.7, 0.2]])
    assert float(ratio_loss(p, begins, positions, None, 4)) == pytest.approx(4 / 3)
    begins = torch.tensor([[True, False, False, False]])
    even = torch.full((1, 4), 0.25)
    assert float(ratio_loss(even, begins, positions, None, 4)) == pytest.approx(1.0)


def test_the_ratio_is_each_documents_and_the_mean_is_over_rows() -> None:
    """Rows: a document of 4 and one of 2; padding and one of 4. N = 2."""
    segments = segments_of([[4, 2], [-2, 4]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 3]])
    begins = torch.tensor([[1, 0, 0, 0, 1, 1], [0, 0, 1, 0, 1, 0]]).bool()
    p = torch.tensor([[1.0, 0, 0, 0, 1, 1], [1, 1, 1, 0, 1, 0]], requires_grad=True)
    # F = G = 1/4: 2 (9/16 + 1/16) = 1.25; F = G = 1: 2; F = G = 1/2: 1.
    both = ratio_loss(p, begins, positions, segments, 2)
    assert float(both.detach()) == pytest.approx(((4 * 1.25 + 2 * 2) / 6 + 1) / 2)
    apart = [
        ratio_loss(p[r : r + 1], begins[r : r + 1], positions[r : r + 1], segments[r : r + 1], 2)
        for r in range(2)
    ]
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)
    (gradient,) = torch.autograd.grad(both, p)
    assert not gradient[1, :2].any(), "padding is charged"
    # d/dG = 2 (F - (1 - F)) of a document, over its 4 tokens, 4/6 of its row, half of the batch
    assert float(gradient[0, 0]) == pytest.approx(2 * (0.25 - 0.75) / 4 * 4 / 6 / 2)


def test_training_charges_the_ratio_of_every_level() -> None:
    backbone, draws = made(levels=2, ratio_weight=0.5), Draws(0, 0, 0, 1, rows=2)
    tokens, segments = read(2, 20), segments_of([[8, 12], [-5, 15]])
    whole = backbone(tokens, segments, draws=draws).losses["ratio"]
    rows = [
        backbone(tokens[r : r + 1], segments[r : r + 1], draws=draws).losses["ratio"]
        for r in range(2)
    ]
    torch.testing.assert_close(whole, (rows[0] + rows[1]) / 2)
    latent = backbone.latent
    assert isinstance(latent, Chunk)
    whole.backward()
    for level in latent.each():
        gradient = level.router.get_parameter("query.weight").grad
        assert gradient is not None and gradient.any()
    assert backbone(tokens, segments).losses == {}, "evaluation charges nothing"
    assert made(router="stride")(tokens, segments, draws=draws).losses == {}


# What it costs


def test_costs_by_hand() -> None:
    """Encoder, decoder and depth of one block each; chunks at bytes 1, 3, 4; bytes 5, 6 decoded."""
    backbone = made("attn", router="stride", ratio=2, encoder="attn", depth=None)
    latent, depth = backbone.latent, backbone.depth
    assert isinstance(latent, Chunk)
    (level,) = latent.each()
    spent = ChunkCosts(latent, depth, 1).spent([1, 0, 1, 1, 0, 1], prompt=4)
    assert spent.chunks == 4
    inner = 2  # layers of the depth
    assert spent.block_calls == 6 * 2 + 4 * inner
    assert spent.serial_calls == (2 + inner) + 2 + (2 + inner)
    expected = sum(level.cost(n).flops for n in range(1, 7))
    expected += sum(depth.cost(n, 1).flops for n in range(1, 5))
    assert spent.flops == pytest.approx(expected)
    assert spent.state_bytes == level.cost(6).state_bytes + depth.cost(4, 1).state_bytes


CASES = {
    "cosine": {},
    "two levels": {"levels": 2, "ratio": 2},
    "space": {"router": "space"},
    "looped": {"depth": LoopedDepthConfig(loops=2), "router": "stride", "ratio": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_costs_are_counted(case: str) -> None:
    """FLOPs and block calls of a prompt and decoded bytes, from where chunks really began."""
    backbone, ran = made(**CASES[case]), []
    latent = backbone.latent
    assert isinstance(latent, Chunk)
    for module in backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, args, out: ran.append(args[0].shape[1]))
    tokens, state = read(1, 16), backbone.init_state(1, 16, dtype=torch.float64)
    tokens[0, ::4] = 32
    pieces = [tokens[:, :9], *tokens[:, 9:].split(1, dim=1)]
    with step_by_step(), FlopCounterMode(display=False) as counter, torch.no_grad():
        begins = [n for piece in pieces for n in chunks(backbone, piece, None, state)[0]]
    assert len(set(begins)) > 1, "all bytes begin as many chunks"
    loops = backbone.depth.default_loops
    spent = ChunkCosts(latent, backbone.depth, loops).spent(begins, prompt=9)
    assert spent.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert spent.block_calls == sum(ran)
    assert spent.serial_calls == len(ran)


def test_costs_without_content_go_by_the_ratio() -> None:
    """As where a chunk begins at every fourth byte: summed, held, and block calls on the mean."""
    backbone = made(router="stride", ratio=4, depth=LoopedDepthConfig(loops=3))
    latent = backbone.latent
    assert isinstance(latent, Chunk)
    begins = [1, 0, 0, 0] * 4
    spent = ChunkCosts(latent, backbone.depth, 3).spent(begins, prompt=16)
    at_once = backbone.prefill_cost(16, 3, readouts=0)
    assert at_once.flops == pytest.approx(spent.flops)
    assert at_once.state_bytes == spent.state_bytes == backbone.cost(16, 3).state_bytes
    assert at_once.serial_steps == spent.serial_calls == 2 + 2 * 3
    one_by_one = sum(backbone.cost(n, 3).flops - backbone.readout_flops for n in range(1, 17))
    assert one_by_one == pytest.approx(spent.flops)
    assert backbone.block_calls_per_position(3) == spent.block_calls / 16
    assert backbone.block_calls_per_position(3) == 2 + 2 * 3 / 4


def test_a_state_holds_what_is_counted_where_every_byte_is_a_chunk() -> None:
    """There is room for as many chunks as bytes."""
    backbone = made("attn", levels=2).float()
    latent = backbone.latent
    assert isinstance(latent, Chunk)
    spent = ChunkCosts(latent, backbone.depth, 1).spent([2] * 7, prompt=7)
    assert backbone.init_state(1, 7).nbytes == spent.state_bytes


# What is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"router": "bpe"}, "latent.router=bpe is not known: choose one of cosine, stride, space"),
        ({"ratio": 1}, "latent.ratio=1 must be at least 2"),
        ({"levels": 3}, "latent.levels=3 must be 1 or 2"),
        ({"levels": 2, "router": "space"}, "latent.levels=2 needs chunks of chunks"),
        ({"encoder_layers": 0}, "latent.encoder_layers=0 must be at least 1"),
        ({"ratio_weight": -1.0}, "latent.ratio_weight=-1.0 must be at least 0"),
        ({"decoder": "mamba2"}, "latent.decoder=mamba2: "),
        ({"depth": LoopedDepthConfig(loops=2, route="token")}, "depth.route"),
        ({"depth": LoopedDepthConfig(loops=2, stop="entropy:2")}, "depth.stop=entropy:2"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**settings)
