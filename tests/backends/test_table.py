"""Which backend is chosen for which device."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import FakeModule

from sylvinit.backends import choose, cusolver, eigen, extension, kernels, table
from sylvinit.errors import BackendError
from sylvinit.sylvester import spectral as user_spectral

GPU = torch.device("cuda", 1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An extension that runs: GPU 0 is an H100, GPU 1 an A100."""
    monkeypatch.setattr(extension, "module", FakeModule())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    capabilities = [(9, 0), (8, 0)]
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda device: capabilities[device if isinstance(device, int) else device.index],
    )
    return monkeypatch


def test_the_rows() -> None:
    cuda, cpu, anything = table()
    assert [row.name for row in (cuda, cpu, anything)] == ["cuda", "cpu", "torch"]
    assert (cuda.eigh, cuda.eigh_pair) == (cusolver.eigh, cusolver.eigh_pair)
    assert cuda.divide is kernels.divide
    for row in (cpu, anything):
        assert (row.eigh, row.eigh_pair) == (eigen.eigh, eigen.eigh_pair)
        assert row.divide is eigen.divide


def test_choice_with_the_extension(runs) -> None:
    assert choose("auto", GPU).name == "cuda"
    assert choose("cuda", GPU).name == "cuda"
    assert choose("torch", GPU).name == "torch"
    assert choose("auto", torch.device("cpu")).name == "cpu"
    assert choose("torch", torch.device("cpu")).name == "torch"
    with pytest.raises(BackendError, match="'cuda' takes tensors on cuda, but the model is on cpu"):
        choose("cuda", torch.device("cpu"))
    with pytest.raises(BackendError, match="'cpu' takes tensors on cpu"):
        choose("cpu", GPU)
    assert "cuSOLVER" in table()[0].reason


def test_choice_without_the_extension(monkeypatch) -> None:
    monkeypatch.setattr(extension, "module", None)
    assert choose("auto", GPU).name == "torch"
    with pytest.raises(BackendError, match=r"'cuda' cannot run here: .*SYLVINIT_CUDA=1"):
        choose("cuda", GPU)
    assert not table()[0].available
    assert "not built" in table()[0].reason


def test_a_gpu_without_code_for_it(runs) -> None:
    runs.setattr(extension.module, "ARCHITECTURES", "9.0a")
    assert choose("auto", torch.device("cuda", 0)).name == "cuda"
    assert choose("auto", GPU).name == "torch"
    with pytest.raises(BackendError, match=r"no code for cuda:1, .*TORCH_CUDA_ARCH_LIST=8\.0"):
        choose("cuda", GPU)


def test_the_cpu_is_chosen_without_asking_for_gpus(monkeypatch) -> None:
    """Asking would initialize CUDA: memory on a GPU, and no more forking."""

    def asked() -> str:
        raise AssertionError("asked")

    monkeypatch.setattr(extension, "reason", asked)
    assert choose("auto", torch.device("cpu")).name == "cpu"
    assert [row.name for row in table()] == ["cuda", "cpu", "torch"]
    a = torch.eye(3, dtype=torch.float64)
    user_spectral.decompose_pair(a, a)
