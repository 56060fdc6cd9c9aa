from __future__ import annotations

import pytest
import torch
from torch import nn

from sylvinit.demo.networks import BasicBlock, digits_net, resnet20


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet20_has_he_et_al_s_parameters() -> None:
    convolutions = 27 * 16 + 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(resnet20()) == convolutions + norms + 64 * 10 + 10 == 269_722
    assert sum(isinstance(module, nn.Conv2d) for module in resnet20().modules()) == 19


def test_resnet20_halves_the_map_twice_and_scores_classes() -> None:
    model = resnet20(num_classes=7).eval()
    shapes: list[torch.Size] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert [tuple(shape[1:]) for shape in shapes] == (
        [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    )


def test_module_names_are_those_of_published_checkpoints() -> None:
    names = set(resnet20().state_dict())
    block = {f"{part}.weight" for part in ("conv1", "bn1", "conv2", "bn2")}
    assert {f"blocks.{index}.{name}" for index in range(9) for name in block} <= names
    assert {"conv1.weight", "bn1.running_var", "fc.weight", "fc.bias"} <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)


@pytest.mark.parametrize(
    ("before", "after", "stride"), [(2, 2, 1), (2, 6, 2), (3, 4, 2), (4, 4, 2)]
)
def test_shortcut_is_option_a(before: int, after: int, stride: int) -> None:
    x = torch.randn(2, before, 5, 6)
    expected = torch.zeros(2, after, -(-5 // stride), -(-6 // stride))
    first = (after - before) // 2
    for channel in range(before):
        for row in range(expected.shape[2]):
            for column in range(expected.shape[3]):
                pixel = x[:, channel, row * stride, column * stride]
                expected[:, first + channel, row, column] = pixel
    block = BasicBlock(before, after, stride).eval()
    torch.testing.assert_close(block.shortcut(x), expected, rtol=0, atol=0)
    nn.init.zeros_(block.conv2.weight)  # what is left of the block is its shortcut
    torch.testing.assert_close(block(x), expected.relu(), rtol=0, atol=0)


def test_digits_net() -> None:
    model = digits_net()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in model) == 8
    assert [name for name, _ in model.named_children()][-1] == "fc"


@pytest.mark.parametrize("size", [7, 8])
def test_the_shortcut_is_every_other_pixel_and_keeps_the_layout(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, size, size, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    block = BasicBlock(4, 8, stride=2)
    y = block.shortcut(x)
    expected = torch.zeros(2, 8, (size + 1) // 2, (size + 1) // 2)
    expected[:, 2:6] = x[:, :, ::2, ::2].detach()
    assert torch.equal(y, expected)
    weight = torch.randn(y.shape, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    back = torch.zeros(2, 4, size, size)
    back[:, :, ::2, ::2] = weight[:, 2:6]
    assert torch.equal(gradient, back)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
