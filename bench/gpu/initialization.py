"""Step "initialize": initialize_ beside the forward pass and the bare eigendecompositions.

ResNet-20 on 1,000 images of 32 x 32 and ResNet-50 on 1,024 of 224 x 224, float32, the forward pass
in the same microbatches under the same switches of torch. The eigendecompositions are one for each
layer that was solved, of the size of its input, by torch.linalg.eigh in float64.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sylvinit
from gpu.context import Context
from gpu.direct import covariances
from gpu.networks import Bottlenecks, resnet50
from gpu.timing import Clock
from sylvinit.demo.networks import resnet20

RATIO = 1.5  # of initialize_ to forward pass + eigendecompositions, for ResNet-50
MEMORY = 1.3  # of its peak to that of a forward pass of the whole set


def run(context: Context) -> None:
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    for name, channels_last, microbatch in context.cases(_plan(context), need=15):
        with context.attempt(f"{name}, channels_last={channels_last}, microbatch={microbatch}"):
            _measure(context, name, channels_last, microbatch)
    with context.attempt("waiting for the GPU"):
        _waits(context)


def _plan(context: Context) -> list[tuple[str, bool, int]]:
    if context.dry:
        return [("ResNet-20", True, 4), ("ResNet-50", False, 4)]
    if context.quick:
        return [("ResNet-20", True, 128), ("ResNet-50", True, 128)]
    both = [(name, last) for name in ("ResNet-50", "ResNet-20") for last in (True, False)]
    plan = [(name, last, 128) for name, last in both]
    plan += [("ResNet-50", True, size) for size in (64, 256, 16)]
    return plan + [("ResNet-20", True, size) for size in (256, 1000)]


def _network(context: Context, name: str) -> tuple[nn.Module, tuple[int, ...], str]:
    """A network, the shape of its data, and its origin."""
    torch.manual_seed(0)
    if context.dry:
        if name == "ResNet-20":
            return resnet20(4, widths=(4, 6, 8), blocks=1), (12, 3, 8, 8), "tiny"
        return Bottlenecks((1, 1), 4, 10), (12, 3, 16, 16), "tiny"
    if name == "ResNet-20":
        return resnet20(), (1000, 3, 32, 32), "sylvinit.demo"
    network, origin = resnet50()
    return network, (256 if context.quick else 1024, 3, 224, 224), origin


def _measure(context: Context, name: str, channels_last: bool, microbatch: int) -> None:
    clock = Clock(context.dry)
    network, shape, origin = _network(context, name)
    network = network.to(context.device).eval()
    images = torch.randn(shape, device=context.device)
    # Smooth in space, as images are.
    images = nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(images), device=context.device) % network.fc.out_features
    data, reports = (images, labels), []

    def initialize() -> None:
        reports.append(
            sylvinit.initialize_(
                network, data, preset="best", microbatch=microbatch, progress=False
            )
        )

    def forward(size: int = microbatch) -> None:
        with torch.inference_mode():
            for part in images.split(size):
                network(part)

    slow: dict[str, Any] = {"seconds": 1.0, "least": 3, "most": 5}
    row: dict[str, Any] = {"network": name, "origin": origin, "images": len(images)}
    row.update(form="channels_last" if channels_last else "NCHW", microbatch=microbatch)
    before = copy.deepcopy(network.state_dict())
    row["initialize_bytes"] = clock.peak(initialize)  # a warm-up, too
    row["forward_s"] = clock.time([forward], **slow).median
    network.load_state_dict(before)
    with context.attempt(f"{name}, forward pass of the whole set"):
        row["forward_bytes"] = clock.peak(lambda: forward(len(images)))
    timing = clock.time([initialize], **slow)
    row.update(initialize_s=timing.median, initialize_least_s=timing.least)
    row["eigh_s"], row["sizes"] = _bare_eigh(clock, reports[-1], context.device)
    row["ratio"] = timing.median / (row["forward_s"] + row["eigh_s"])
    row["over_forward"] = timing.median / row["forward_s"]
    if row.get("forward_bytes"):
        row["memory_ratio"] = row["initialize_bytes"] / row["forward_bytes"]
    solved = reports[-1].solved
    row["layers"], row["worst_residual"] = len(solved), max(s.residual for s in solved)
    row["solve_s"] = sum(layer.seconds for layer in solved)
    row["notes"] = sorted({note for layer in solved for note in layer.notes if "cuSOLVER" in note})
    shown = "network form microbatch initialize_s forward_s eigh_s ratio memory_ratio"
    context.row("networks", shown, **row)
    if name == "ResNet-50":
        where = f"{row['images']} images, {row['form']}, microbatch {microbatch}"
        text = f"initialize_, ResNet-50, {where}: <= {{:g}} x {{}}"
        eigen = "(forward pass + eigendecompositions)"
        context.target(text.format(RATIO, eigen), row["ratio"], most=RATIO)
        if "memory_ratio" in row:
            text = text.format(MEMORY, "peak memory of one forward pass")
            context.target(text, row["memory_ratio"], most=MEMORY)


def _bare_eigh(clock: Clock, report: sylvinit.Report, device: str) -> tuple[float, dict[str, int]]:
    """Seconds of one decomposition for each layer, and how many there are of each size."""
    counts = Counter((layer.d_in, layer.groups) for layer in report.solved)
    total = 0.0
    for (d, groups), count in counts.items():
        a = covariances(groups, d, device)
        call: Callable[[], Any] = lambda a=a: torch.linalg.eigh(a)  # noqa: E731
        total += count * clock.time([call], seconds=0.1, least=2, most=10).median
    return total, {f"{groups} x {d}": count for (d, groups), count in sorted(counts.items())}


def _waits(context: Context) -> None:
    """Operations that make the host wait, with few and with many microbatches."""
    network, shape, _ = _network(context, "ResNet-20")
    network = network.to(context.device)
    images = torch.randn(shape, device=context.device)
    counts: dict[int, int] = {}
    half, quarter = len(images) // 2, len(images) // 4
    for microbatch in (half, half, quarter, quarter // 2):  # the first loads kernels
        counts[-(-len(images) // microbatch)] = _count_waits(context, network, images, microbatch)
    per = (counts[max(counts)] - counts[min(counts)]) / (max(counts) - min(counts))
    context.put(waits=counts, waits_per_microbatch=per)
    context.target("initialize_: host waits for the GPU per microbatch", per, most=0.0)


def _count_waits(context: Context, network: nn.Module, images: Tensor, microbatch: int) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not context.dry:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        try:
            sylvinit.initialize_(
                network, images, preset="best", microbatch=microbatch, progress=False
            )
        finally:
            if not context.dry:
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
