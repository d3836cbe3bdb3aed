"""Feed-forward networks against their formulas, and the balance of routed ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.mlps.listing import MLPS
from models.mlps.mlp import MLP
from models.mlps.moe import MoE, MoEConfig
from models.mlps.relu2 import ReLU2
from models.mlps.swiglu import SwiGLU
from models.ops.twin import step_by_step
from models.routing import Router, routers
from tests.models.cases import ROUNDING, randomise

DIM, HIDDEN = 6, 10


def built(kind: str) -> MLP:
    mlp = MLPS[kind]().build(DIM, HIDDEN).double()
    randomise(mlp)
    return mlp


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 7)), DIM, dtype=torch.float64)


def test_swiglu_is_its_formula() -> None:
    mlp, x = built("swiglu"), inputs()
    assert isinstance(mlp, SwiGLU)
    gate, up = mlp.gate_up.weight.chunk(2)
    expected = (F.silu(x @ gate.mT) * (x @ up.mT)) @ mlp.output.weight.mT
    torch.testing.assert_close(mlp(x), expected, **ROUNDING)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected, **ROUNDING)


def test_relu2_is_its_formula() -> None:
    mlp, x = built("relu2"), inputs()
    assert isinstance(mlp, ReLU2)
    expected = (x @ mlp.up.weight.mT).clamp(min=0) ** 2 @ mlp.output.weight.mT
    torch.testing.assert_close(mlp(x), expected, **ROUNDING)


def test_experts_are_summed_by_their_normalised_scores() -> None:
    mlp, x = built("moe"), inputs()
    assert isinstance(mlp, MoE) and mlp.shared is not None
    expected = mlp.shared(x)
    scores = (x @ mlp.router.score.weight.mT).sigmoid()
    for row in range(2):
        for time in range(7):
            best = scores[row, time].argsort(descending=True)[:2]
            for expert in best.tolist():
                share = scores[row, time, expert] / scores[row, time, best].sum()
                said = mlp.experts[expert](x[row, time][None, None])[0, 0]
                expected[row, time] = expected[row, time] + share * said
    torch.testing.assert_close(mlp(x), expected, atol=1e-8, rtol=1e-8)  # 1e-9 guards the sum


@pytest.mark.parametrize("kind", MLPS)
def test_the_cost_of_a_token_is_counted(kind: str) -> None:
    with torch.device("meta"):
        mlp = MLPS[kind]().build(DIM, HIDDEN)
    with step_by_step(), FlopCounterMode(display=False) as counter:
        mlp(torch.empty(1, 5, DIM, device="meta"))
    assert 5 * mlp.cost().flops == counter.get_total_flops()
    assert mlp.cost().weight_bytes == 4 * sum(p.numel() for p in mlp.parameters())


def test_nothing_is_dropped_when_all_choose_one_expert() -> None:
    mlp = MoEConfig(num_experts=4, top_k=1, shared_experts=0).build(DIM, HIDDEN).double()
    randomise(mlp)
    with torch.no_grad():
        mlp.router.bias_E.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    x = inputs(3, 40)
    score = (x @ mlp.router.score.weight[2]).sigmoid()
    torch.testing.assert_close(mlp(x), score[..., None] * mlp.experts[2](x), **ROUNDING)


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero() -> None:
    mlp = MoEConfig(num_experts=4, top_k=1).build(DIM, HIDDEN).double()
    randomise(mlp)
    with torch.no_grad():
        mlp.router.bias_E.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))
    mlp(inputs()).sum().backward()
    for parameter in mlp.experts[3].parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero() == 0


def test_the_bias_selects_but_does_not_weigh() -> None:
    router = Router(DIM, 3, 1, 0.1).double()
    x = inputs()
    router.bias_E.copy_(torch.tensor([9.0, 0.0, 0.0]))
    weights, chosen = router(x, None)
    assert (chosen == 0).all()
    torch.testing.assert_close(weights[..., 0], (x @ router.score.weight[0]).sigmoid())


def test_the_load_is_counted_while_training_and_without_padding() -> None:
    router = Router(DIM, 4, 2, 0.1).double()
    segments = torch.tensor([[-1, -1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, -1]])
    router(inputs(), segments)
    assert router.load_E.sum() == 2 * 11
    router.eval()(inputs(), segments)
    with torch.no_grad():
        router.train()(inputs(), segments)
    assert router.load_E.sum() == 2 * 11, "only training counts"


def test_balancing_moves_the_bias_against_the_load() -> None:
    router = Router(DIM, 3, 1, 0.25)
    router.load_E.copy_(torch.tensor([9.0, 3.0, 0.0]))
    router.balance()
    assert router.bias_E.tolist() == [-0.25, 0.25, 0.25]
    assert router.load_E.count_nonzero() == 0


def test_balancing_evens_out_a_skewed_load() -> None:
    """Without an auxiliary loss: only the selecting bias moves."""
    torch.manual_seed(0)
    router = Router(DIM, 4, 1, 0.01)
    x = torch.randn(1, 4096, DIM) + 1.0
    shares = []
    for _ in range(150):
        router(x, None)
        shares.append((router.load_E.max() / router.load_E.sum()).item())
        router.balance()
    assert shares[0] > 0.4 and shares[-1] < 0.3


def test_the_bias_is_kept_in_checkpoints_and_the_count_is_not() -> None:
    names = MoEConfig().build(DIM, HIDDEN).state_dict()
    assert "router.bias_E" in names and "router.load_E" not in names
    assert len(routers(MoEConfig().build(DIM, HIDDEN))) == 1


def test_a_reset_defines_every_buffer() -> None:
    """Sharded models are made without storage: what was there must not stay."""
    with torch.device("meta"):
        mlp = MoEConfig().build(DIM, HIDDEN)
    mlp.to_empty(device="cpu")
    for buffer in mlp.buffers():
        buffer.fill_(7)
    mlp.reset_parameters()
    assert all(buffer.count_nonzero() == 0 for buffer in mlp.buffers())
