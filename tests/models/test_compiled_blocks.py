"""Compiled blocks compute what plain ones do (needs a C++ compiler, and a minute or two)."""

import pytest
import torch

from models.backbone import Backbone
from tests.models.cases import (
    BACKBONE_CASES,
    LENGTH,
    PACKINGS,
    VOCABULARY,
    build_backbone,
)


# torch's compiler warns inside itself: of functions of its own that it has deprecated, and of probes
# that it makes on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")


def results(backbone: Backbone, read: torch.Tensor) -> dict[str, torch.Tensor]:
    out = backbone(read, PACKINGS["several"])
    logits = out.readout(out.hidden_BTD)
    backbone.zero_grad()
    logits.sin().sum().backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["gdn mamba2 attn", "looped"])
def test_compiled_blocks_agree(case: str) -> None:
    plain = build_backbone(BACKBONE_CASES[case], torch.float32)
    compiled = build_backbone(BACKBONE_CASES[case], torch.float32)
    compiled.compile_blocks()
    for _ in range(2):
        read = torch.randint(VOCABULARY, (2, LENGTH))
        expected, actual = results(plain, read), results(compiled, read)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                actual[name], value, atol=1e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_compiling_keeps_the_weights_and_their_names() -> None:
    """Checkpoints of compiled and plain runs are the same; nothing compiles before the first call."""
    backbone = build_backbone(BACKBONE_CASES["gdn"])
    before = list(backbone.state_dict())
    backbone.compile_blocks()
    assert list(backbone.state_dict()) == before
    assert all(block._compiled_call_impl is not None for block in backbone.depth.blocks)
