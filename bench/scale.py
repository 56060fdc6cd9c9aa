"""What initialize_(..., process_group=...) costs on many ranks: a model, and the Gram phase here.

    python bench/scale.py                the model: time of a layer and what limits it
    python bench/scale.py --measure      the Gram phase on 1 and 2 processes of one thread each

The model simulates the ranks of one layer: each multiplies its own rows, with times that scatter;
all meet; the moments go up a binary tree, merged on the way; one rank solves; the weight goes back.
Its rates are the arguments below, with defaults from data sheets: they are not measured.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import distributed as dist


@dataclass(frozen=True)
class Machine:
    """Rates of a rank and of what connects it."""

    name: str
    bandwidth: float  # bytes a second between two ranks
    latency: float  # seconds of a message
    products: float = 150e12  # flops a second of rows^T rows (float32 as 3xTF32)
    solver: float = 1e12  # flops a second of an eigendecomposition in float64
    memory: float = 3e12  # bytes a second of a rank's own memory
    scatter: float = 0.05  # standard deviation of a rank's time, relative


NVLINK = Machine("NVLink, 450 GB/s", 450e9, 10e-6)
NETWORK = Machine("400 Gbit/s", 50e9, 20e-6)


@dataclass(frozen=True)
class Layer:
    """A layer of d features and k outputs; every rank has n of its rows."""

    d: int
    k: int
    n: int

    @property
    def moments(self) -> int:
        """Bytes of the message: a triangle and a mean in float64."""
        return 8 * (self.d * (self.d + 1) // 2 + self.d)

    @property
    def weight(self) -> int:
        """Bytes of weight and bias in float32."""
        return 4 * self.k * (self.d + 1)

    @property
    def gram_flops(self) -> float:
        """Of a symmetric product, whose half is computed."""
        return float(self.n) * self.d**2

    @property
    def solve_flops(self) -> float:
        """Reduction to tridiagonal form, and the way back of k components."""
        return 4 / 3 * self.d**3 + 4 * self.k * self.d**2


@dataclass(frozen=True)
class Times:
    """Seconds on the critical path of one layer, and what the rank that solves sends and gets."""

    gram: float
    meetings: float
    moments: float
    solve: float
    weight: float
    messages: int

    @property
    def total(self) -> float:
        return self.gram + self.meetings + self.moments + self.solve + self.weight

    @property
    def limit(self) -> str:
        parts = {name: getattr(self, name) for name in ("gram", "meetings", "moments", "solve")}
        return max({**parts, "weight": self.weight}.items(), key=lambda item: item[1])[0]


def simulate(layer: Layer, ranks: int, machine: Machine, seed: int = 0) -> Times:
    """One layer on so many ranks."""
    generator = np.random.default_rng(seed)
    clock = layer.gram_flops / machine.products * (1 + np.zeros(ranks))
    if ranks > 1:
        clock *= 1 + machine.scatter * np.abs(generator.standard_normal(ranks))
    gram = float(clock.max())
    # Each of four meetings is a ring of messages too small for the bandwidth to matter.
    meetings = 4 * (ranks - 1) * machine.latency if ranks > 1 else 0.0
    clock[:] = 0.0  # a meeting ends for all at once
    reach, messages = 1, 0
    while reach < ranks:
        for place in range(0, ranks - reach, 2 * reach):
            sent = clock[place + reach] + machine.latency + layer.moments / machine.bandwidth
            merged = 4 * layer.moments / machine.memory  # read twice, written, and unpacked
            clock[place] = max(clock[place], sent) + merged
            messages += place == 0
        reach *= 2
    steps = math.ceil(math.log2(ranks)) if ranks > 1 else 0
    weight = steps * machine.latency + layer.weight / machine.bandwidth * (ranks > 1)
    solve = layer.solve_flops / machine.solver
    return Times(gram, meetings, float(clock[0]), solve, weight, messages)


def show_model(rows: int) -> None:
    """Tables over layers, ranks and networks."""
    for machine in (NVLINK, NETWORK):
        print(f"\n{machine.name}; {rows:,} rows a rank; milliseconds of one layer (limit)")
        ranks = (1, 2, 8, 64, 1024)
        print(f"{'d -> k':>14} {'message':>9}" + "".join(f"{f'{p} ranks':>20}" for p in ranks))
        for d, k in ((576, 64), (1152, 256), (4608, 512), (8192, 1024), (16384, 4096)):
            layer = Layer(d, k, rows)
            cells = ""
            for p in ranks:
                times = simulate(layer, p, machine)
                cells += f"{times.total * 1e3:>11.1f} {times.limit:<8}"
            print(f"{f'{d} -> {k}':>14} {layer.moments / 2**20:>6.1f} MB {cells}")


# ------------------------------------------------------------------------------------- measured


def _gram_phase(rank: int, ranks: int, folder: str, d: int, rows: int, repeats: int) -> None:
    from sylvinit.distributed import ALONE, Message, Ranks
    from sylvinit.moments.packing import pack_moments, unpack_moments
    from sylvinit.moments.streaming import PatchMoments

    torch.set_num_threads(1)
    group = ALONE
    if ranks > 1:
        store = dist.FileStore(f"{folder}/store{ranks}_{d}", ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        group = Ranks(dist.group.WORLD)
    own = rows // ranks
    x = torch.randn(own, d, generator=torch.Generator().manual_seed(rank))
    seconds, products, merging = [], [], []
    for _ in range(repeats):
        if ranks > 1:
            dist.barrier()
        begin, work = time.perf_counter(), time.process_time()
        moments = PatchMoments(d)
        for part in x.split(2048):
            moments.update(part)
        products.append(time.process_time() - work)
        group.total("rows", moments.n)

        def merge(message: Message, held: PatchMoments = moments) -> None:
            held.merge(unpack_moments(message, torch.device("cpu")))

        group.reduce("moments", lambda held=moments: pack_moments(held, rows=False), merge)
        seconds.append(time.perf_counter() - begin)
        merging.append(time.process_time() - work - products[-1])
    torch.save((min(seconds), min(products), min(merging)), f"{folder}/{ranks}_{rank}.pt")
    if ranks > 1:
        dist.destroy_process_group()


def measure(widths: list[int], rows: int, repeats: int) -> None:
    """Seconds of the Gram phase on 1 and 2 processes, the same rows in all.

    Efficiency is T(1) / (2 T(2)) by the clock. Where other work takes the processors, what they
    spend on products and on meeting, packing, sending and merging says more: of the two ranks the
    latter follow each other.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"Gram phase, {rows} rows of float32 in all, best of {repeats}, one thread a process")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for d in widths:
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for ranks in (1, 2):
                mp.spawn(_gram_phase, (ranks, folder, d, rows, repeats), nprocs=ranks)
                found[ranks] = [torch.load(f"{folder}/{ranks}_{rank}.pt") for rank in range(ranks)]
        ((alone, products, _),), ((both, *first), (_, *second)) = found[1], found[2]
        added = first[1] + second[1]
        print(
            f"d {d:>5}: {alone:.3f} s and {both:.3f} s, efficiency {alone / (2 * both):.2f}; "
            f"processors: {products:.3f} s, and {max(first[0], second[0]):.3f} s with "
            f"{added:.3f} s for the merge, {1 / (1 + added / max(first[0], second[0])):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rows", type=int, help="of a rank in the model, in all when measured")
    parser.add_argument("--widths", type=int, nargs="+", default=[288, 576, 1152, 2304])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.widths, arguments.rows or 40_000, arguments.repeats)
    else:
        show_model(arguments.rows or 10_000)


if __name__ == "__main__":
    main()
