"""The benchmark runs, compares within one run, and writes what it measured; it is never timed."""

import json
from pathlib import Path

import pytest

from eval.machine import matmul_rate
from eval.peers import PEERS
from eval.speed import main, parse
from eval.speed_backbones import KINDS, LAYOUTS
from eval.speed_timing import take_turns

TINY = ["dim=32", "layers=2", "head_dim=16", "vocab_size=64", "context=16", "batch=2", "rounds=1"]


def test_it_measures_every_backbone_and_writes_what_it_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    assert main([*TINY, "new_tokens=2", "prompt=3", "peers=false", f"output={output}"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"speed: {output}")
    content = json.loads(output.read_text())
    assert list(content["results"]) == list(LAYOUTS)
    for result in content["results"].values():
        assert result["training"]["tokens_per_second"]["ours"] > 0
        assert result["share_of_matmul_rate"] > 0
        rates = [result[kind]["tokens_per_second"] for kind in KINDS]
        assert all(set(rate) == {"ours"} and rate["ours"] > 0 for rate in rates)
    assert content["machine"]["matmul_flops_per_second"] > 0 and content["machine"]["processor"]


def test_peers_have_nearly_as_many_parameters(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    output = tmp_path / "speed.json"
    shape = ["dim=64", "layers=4", "head_dim=16", "vocab_size=64", "context=16", "batch=1"]
    few = ["rounds=1", "new_tokens=2", "prompt=3", "backbones=[transformer,gdn_hybrid,mamba2]"]
    assert main([*shape, *few, f"output={output}"]) == 0
    for name, result in json.loads(output.read_text())["results"].items():
        ours, theirs = result["parameters"]["ours"], result["parameters"]["peer"]
        assert abs(ours / theirs - 1) < 0.01, (name, ours, theirs)
        assert result["peer"] == PEERS[name]
        for kind in KINDS:
            rates = result[kind]["tokens_per_second"]
            assert result[kind]["ratio"] == pytest.approx(rates["ours"] / rates["peer"])


def test_turns_alternate_and_the_first_is_not_counted() -> None:
    calls: list[str] = []
    seconds = take_turns({n: lambda n=n: calls.append(n) for n in "ab"}, rounds=2, device="cpu")
    assert calls == ["a", "b"] * 3 and {len(times) for times in seconds.values()} == {2}


def test_the_matmul_rate_is_positive() -> None:
    import torch

    assert matmul_rate(torch.float32, "cpu", sizes=(16,), repeats=1) > 0


@pytest.mark.parametrize(
    "wrong", ["dim=0", "precision=8", "backbones=[huge]", "wdith=3", "clock=process"]
)
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        parse([wrong])
