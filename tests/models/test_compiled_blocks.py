"""Compiled blocks compute what plain ones do (needs a C++ compiler, and a minute or two)."""

import pytest
import torch
from torch._dynamo.utils import counters

from models.backbone import Backbone
from models.mixers.listing import MIXERS
from tests.models.cases import (
    BACKBONE_CASES,
    LENGTH,
    PACKINGS,
    SITE,
    VOCABULARY,
    build_backbone,
    build_mixer,
    small_chunks,
)

# torch's compiler warns inside itself, of its own deprecated functions and of probes it makes on
# purpose.
pytestmark = pytest.mark.filterwarnings("ignore")


def results(backbone: Backbone, read: torch.Tensor) -> dict[str, torch.Tensor]:
    out = backbone(read, PACKINGS["several"])
    logits = out.readout(out.hidden_BTD)
    backbone.zero_grad()
    logits.sin().sum().backward()
    gradients = {
        name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None
    }
    return {"logits": logits.detach(), **gradients}


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["gdn mamba2 attn", "looped"])
def test_compiled_blocks_agree(case: str) -> None:
    plain = build_backbone(BACKBONE_CASES[case], torch.float32)
    compiled = build_backbone(BACKBONE_CASES[case], torch.float32)
    torch.compiler.reset()
    counters.clear()
    compiled.compile_blocks()
    for _ in range(2):
        read = torch.randint(VOCABULARY, (2, LENGTH))
        expected, actual = results(plain, read), results(compiled, read)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            error = (actual[name] - value).norm() / value.norm()
            assert error < 1e-4, f"{name} is off by {error:.1e}, relatively"
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["graph_break"]


def test_compiling_keeps_the_weights_and_their_names() -> None:
    """Checkpoints of compiled and plain runs are the same; the first call compiles."""
    backbone = build_backbone(BACKBONE_CASES["gdn"])
    before = list(backbone.state_dict())
    backbone.compile_blocks()
    assert list(backbone.state_dict()) == before
    assert all(block._compiled_call_impl is not None for block in backbone.depth.blocks)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("kind", MIXERS)
def test_torchs_own_path_is_one_graph(kind: str, learns: bool) -> None:
    """Nothing in a mixer makes torch.compile give up, and what it makes has the same gradients."""
    mixer = build_mixer(small_chunks(MIXERS[kind]()), dtype=torch.float32)
    x, segments = torch.randn(2, LENGTH, SITE.dim), PACKINGS["several"]
    x.requires_grad_(learns)
    torch.compiler.reset()

    def mix(x: torch.Tensor) -> torch.Tensor:
        return mixer(x, segments)[0]

    compiled = torch.compile(mix, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(learns):
        outputs = compiled(x), mix(x)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    if learns:
        learnt = [x, *(weight for weight in mixer.parameters() if weight.requires_grad)]
        found = [torch.autograd.grad(y.sin().sum(), learnt, allow_unused=True) for y in outputs]
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_attention_over_several_blocks_of_queries_is_one_graph() -> None:
    """Products that are written into slices don't break it, and mean the same."""
    mixer = build_mixer(MIXERS["attn"](), dtype=torch.float32)
    x = torch.randn(2, 150, SITE.dim, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: mixer(x)[0], backend="eager", fullgraph=True)
    found = [
        torch.autograd.grad(run(x).sin().sum(), x)[0] for run in (compiled, lambda x: mixer(x)[0])
    ]
    torch.testing.assert_close(*found)
