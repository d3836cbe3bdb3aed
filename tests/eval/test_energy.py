import sys
from types import SimpleNamespace

import pytest
import torch

from eval.energy import EnergyMeter


class NVMLError(Exception):
    pass


def fake_library(millijoules: list[int], missing: bool = False) -> SimpleNamespace:
    def handle(uuid: str) -> str:
        if missing:
            raise NVMLError
        return uuid

    def energy(of: str) -> int:
        assert of == "GPU-1234"
        return millijoules.pop(0)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return torch.device("cuda")


def test_a_cpu_has_no_meter() -> None:
    meter = EnergyMeter(torch.device("cpu"))
    assert not meter.available and meter.joules() is None


def test_millijoules_are_read_as_joules(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_library([0, 2500, 4000]))
    meter = EnergyMeter(cuda)
    assert meter.available and [meter.joules(), meter.joules()] == [2.5, 4.0]


@pytest.mark.parametrize("library", [None, fake_library([], missing=True)])
def test_without_a_counter_there_are_no_joules(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert EnergyMeter(cuda).joules() is None
