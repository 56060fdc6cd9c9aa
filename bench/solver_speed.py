"""Time of the Sylvester solver beside SciPy, JAX, two eigendecompositions and LAPACK's floor.

    python bench/solver_speed.py [--large] [--output bench/results/solver_speed.json]

JAX takes part where it is installed:

    python -m venv DIR && DIR/bin/pip install torch==2.13.0 && DIR/bin/pip install . jax
    DIR/bin/python bench/solver_speed.py --large

Every contender solves the problem once before it is timed, and its solution is compared with the
known one. Then they take turns, in another order every round; a sample is the mean of as many calls
as --sample-seconds hold, after one call that is not timed. Contenders other than sylvinit run with
1 and with all threads, and the better one counts. A ratio is the median over rounds of the
quotient within a round. What needs more than --slow seconds is timed once. JAX runs in processes of
their own, see jax_process.py, with its own number of threads.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import torch
from contenders import Contender, Problem, limited, ours
from environment import environment

import sylvinit

POSITIVE = [(16, 27), (16, 144), (32, 288), (64, 576), (128, 1152)]
LARGE = (512, 4608)
GENERAL = [(16, 144), (64, 576)]
BATCH = (500, 32, 32)
WEIGHTS = 20
LOWRANK = (64, 20000, 100)  # k, d, n
# JAX's compiled loops over single columns take minutes above.
JAX_UP_TO = 576
TOLERANCE = 1e-9
# Targets: size, least ratio to SciPy, largest ratio to dsytrd.
TARGETS = {
    (16, 27): (2.0, None),
    (16, 144): (3.0, None),
    (32, 288): (5.0, 2.0),
    (64, 576): (5.0, 2.0),
    (128, 1152): (5.0, 2.0),
    LARGE: (5.0, 2.0),
}
BATCH_TARGET = 5.0
BATCH_EIGH_TARGET = 2.0
# How it is called: "auto" is the default.
STRUCTURES = ("auto", "pos")

Samples = dict[str, list[float]]
Check = Callable[[Any], float]


class Bench:
    """Measures rows and keeps them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.ratios: list[dict[str, Any]] = []
        self.targets: list[dict[str, Any]] = []

    def row(self, problem: str, entrants: list[Contender], check: Check) -> Samples:
        """Seconds per call of every contender, keyed by its label; prints and stores them."""
        print(f"\n{problem}", flush=True)
        samples: Samples = {}
        errors: dict[str, float] = {}
        calls: dict[str, int] = {}
        for entrant in entrants:
            try:
                with limited(entrant.threads):
                    result, seconds = entrant.timed()
                    error = 0.0 if entrant.name in ("dsytrd", "product") else check(result)
                    del result
                    slow = seconds > self.options.slow
                    if not slow:  # the first call may have compiled something or started threads
                        _, again = entrant.timed()
            except TimeoutError as gone:
                print(f"  {entrant.label} left out: {gone}")
                continue
            if not error <= TOLERANCE:
                raise RuntimeError(f"{problem}: {entrant.label} is wrong by {error:.1e}")
            errors[entrant.label] = error
            samples[entrant.label] = [seconds] if slow else []
            calls[entrant.label] = 1 if slow else max(1, round(self.options.sample_seconds / again))
        self._take_turns([e for e in entrants if samples.get(e.label) == []], samples, calls)
        for entrant in entrants:
            entrant.close()
            times = samples.get(entrant.label)
            if not times:
                continue
            best, median = min(times), statistics.median(times)
            self.rows.append(
                {
                    "problem": problem,
                    "contender": entrant.name,
                    "threads": entrant.threads or contenders.ALL_THREADS,
                    "best_s": best,
                    "median_s": median,
                    "samples_s": times,
                    "calls_a_sample": calls[entrant.label],
                    "relative_error": errors[entrant.label],
                }
            )
            print(
                f"  {entrant.label:24s} best {1e3 * best:11.3f} ms  median {1e3 * median:11.3f} ms"
                f"  rounds {len(times):2d}  error {errors[entrant.label]:.0e}",
                flush=True,
            )
        return samples

    def _take_turns(
        self, entrants: list[Contender], samples: Samples, calls: dict[str, int]
    ) -> None:
        begin = time.perf_counter()
        gc.disable()
        for number in range(self.options.rounds):
            if number and time.perf_counter() - begin > self.options.row_seconds:
                break
            start = number % max(1, len(entrants))
            for entrant in entrants[start:] + entrants[:start]:
                try:
                    with limited(entrant.threads):
                        entrant.timed()
                        _, seconds = entrant.timed(calls[entrant.label])
                except TimeoutError as error:
                    print(f"  {entrant.label} stopped: {error}")
                    entrants = [e for e in entrants if e is not entrant]
                    continue
                samples[entrant.label].append(seconds)
        gc.enable()

    def ratio(self, problem: str, samples: Samples, over: str, under: str) -> float:
        """Median over rounds of time(over) / time(under), each at its best thread count."""
        above, below = _fastest(samples, over), _fastest(samples, under)
        if not above or not below:
            return float("nan")
        rounds = max(len(above), len(below))
        pairs = [above[i % len(above)] / below[i % len(below)] for i in range(rounds)]
        value, bests = statistics.median(pairs), min(above) / min(below)
        self.ratios.append(
            {"problem": problem, "of": over, "to": under, "median": value, "of_bests": bests}
        )
        print(f"  {over} / {under}: {value:.2f} (of the best times {bests:.2f})", flush=True)
        return value

    def target(self, text: str, value: float, bound: float, least: bool) -> None:
        met = value >= bound if least else value <= bound
        self.targets.append({"target": text, "value": value, "met": met})


def _fastest(samples: Samples, name: str) -> list[float]:
    """Of a contender's thread counts, the one with the best median."""
    found = [t for label, t in samples.items() if label.split(",")[0] == name and t]
    return min(found, key=statistics.median, default=[])


def _bench_positive(bench: Bench, k: int, d: int) -> None:
    problem = contenders.positive(k, d)
    name = f"positive ({k}, {d})"
    entrants = [
        *(ours(problem, structure) for structure in STRUCTURES),
        *contenders.scipy_contenders(problem),
        *contenders.eigh_contenders(problem),
        *contenders.reduction_contenders(problem),
    ]
    if d <= JAX_UP_TO:
        entrants += contenders.jax_contenders(problem, ("schur", "eigen"))
    samples = bench.row(name, entrants, problem.error)
    speed, reduction = TARGETS[k, d]
    for structure in STRUCTURES:
        for other in ("eigh twice", "jax schur", "jax eigen"):
            bench.ratio(name, samples, other, structure)
        value = bench.ratio(name, samples, "scipy", structure)
        bench.target(f"{name}, {structure}: >= {speed:g} x scipy", value, speed, True)
        value = bench.ratio(name, samples, structure, "dsytrd")
        if reduction is not None:
            text = f"{name}, {structure}: <= {reduction:g} x dsytrd"
            bench.target(text, value, reduction, False)


def _bench_deficient(bench: Bench, k: int, d: int) -> None:
    """Half of the eigenvalues zero: the minimum-norm solution."""
    problem = contenders.positive(k, d, deficient=True)
    name = f"positive, half of the rank ({k}, {d})"
    entrants = [ours(problem, "pos"), *contenders.eigh_contenders(problem, drop=True)]
    samples = bench.row(name, entrants, problem.error)
    bench.ratio(name, samples, "eigh twice", "pos")


def _bench_batch(bench: Bench, kind: str) -> None:
    count, k, d = BATCH
    problem = getattr(contenders, kind)(k, d, (count,))
    name = f"{kind}, {count} x ({k}, {d})"
    structures = STRUCTURES if kind == "positive" else ("gen",)
    entrants = [
        *(ours(problem, structure) for structure in structures),
        *contenders.scipy_contenders(problem),
        *contenders.jax_contenders(problem, ("schur", "eigen")),
    ]
    if kind == "positive":
        entrants += contenders.eigh_contenders(problem)
    samples = bench.row(name, entrants, problem.error)
    for structure in structures:
        for other in ("jax schur", "jax eigen"):
            bench.ratio(name, samples, other, structure)
        value = bench.ratio(name, samples, "scipy", structure)
        if kind == "positive":
            twice = bench.ratio(name, samples, "eigh twice", structure)
            text = f"{name}, {structure}: >= {BATCH_EIGH_TARGET:g} x eigh twice"
            bench.target(text, twice, BATCH_EIGH_TARGET, True)
            text = f"{name}, {structure}: >= {BATCH_TARGET:g} x a scipy loop"
            bench.target(text, value, BATCH_TARGET, True)


def _bench_general(bench: Bench, k: int, d: int) -> None:
    problem = contenders.general(k, d)
    name = f"general ({k}, {d})"
    entrants = [
        ours(problem, "gen"),
        *contenders.scipy_contenders(problem),
        *contenders.jax_contenders(problem, ("schur",)),
    ]
    samples = bench.row(name, entrants, problem.error)
    bench.ratio(name, samples, "jax schur", "gen")
    bench.ratio(name, samples, "scipy", "gen")


def _bench_sweep(bench: Bench, kind: str, structure: str, k: int, d: int) -> None:
    """A X + lam X B = Q for 20 lam."""
    a, b, q, _ = getattr(contenders, kind)(k, d)
    lams = torch.logspace(-2, 2, WEIGHTS, dtype=torch.float64)
    name = f"{kind}, {WEIGHTS} weights ({k}, {d})"

    def factored() -> torch.Tensor:
        return sylvinit.sylvester_factor(a, b, assume_a=structure).solve(q, scale=lams)

    def one_by_one() -> torch.Tensor:
        solve = partial(sylvinit.solve_sylvester, assume_a=structure)
        return torch.stack([solve(a, lam * b, q) for lam in lams])

    def scipy() -> torch.Tensor:
        return torch.stack([contenders.scipy_solve(a, lam * b, q) for lam in lams])

    entrants = [
        Contender("factor", lambda: sylvinit.sylvester_factor(a, b, assume_a=structure)),
        Contender("factor + sweep", factored),
        Contender("one by one", one_by_one),
        *(Contender("scipy", scipy, threads) for threads in contenders.THREADS),
    ]
    weighted = lams[:, None, None]

    def check(x: Any) -> float:
        if not isinstance(x, torch.Tensor):  # the factors alone
            x = x.solve(q, scale=lams)
        # The equations are well conditioned: a small residual is a small error.
        return float(sylvinit.sylvester_residual(a, weighted * b, q, x).max())

    samples = bench.row(name, entrants, check)
    bench.ratio(name, samples, "one by one", "factor + sweep")
    bench.ratio(name, samples, "scipy", "factor + sweep")


def _bench_lowrank(bench: Bench) -> None:
    """B = X X^T by its factor: at a size where B fits, and where it does not."""
    k, large, n = LOWRANK
    for d in (POSITIVE[-1][1], large):
        generator = torch.Generator().manual_seed(d)
        a = contenders.covariance(k, (), 2 * k, generator)
        x = torch.randn(d, n, dtype=torch.float64, generator=generator) / n**0.5
        w = torch.randn(k, d, dtype=torch.float64, generator=generator)
        q = a @ w + (w @ x) @ x.mT
        call = partial(sylvinit.solve_sylvester_lowrank, a, x, q)
        # QR with its orthogonal factor 4 d n^2, eigenvectors times it 2 d n^2; twice (a refinement)
        # 2 products with U, 4 k^2 d, and 5 with the basis, 10 k d n; a residual 2 k^2 d + 4 k d n.
        flops = 6 * d * n * n + 10 * k * k * d + 24 * k * d * n
        side = round((flops / 2) ** (1 / 3))
        square = torch.randn(side, side, dtype=torch.float64, generator=generator)
        entrants = [
            Contender("lowrank", call),
            Contender("product", lambda s=square: s @ s),  # of as many flops
        ]
        problem = Problem(a, x @ x.mT if d < large else x, q, w)
        if d < large:
            entrants.append(ours(problem, "pos"))
        name = f"low rank {n} ({k}, {d})"
        samples = bench.row(name, entrants, problem.error)
        rate = flops / min(samples["lowrank"]) / 1e9
        print(f"  {flops / 1e9:.2f} Gflop, {rate:.1f} Gflop/s")
        bench.ratio(name, samples, "lowrank", "product")
        if d < large:
            bench.ratio(name, samples, "pos", "lowrank")


def _bench_gradient(bench: Bench, kind: str, structure: str, size: tuple[int, ...]) -> None:
    """Forward and backward for all three inputs beside forward alone."""
    *batch, k, d = size
    problem = getattr(contenders, kind)(k, d, tuple(batch))
    a, b, q, x = problem
    inputs = [value.clone().requires_grad_() for value in (a, b, q)]
    # The gradient of q solves the adjoint equation; for this one the solution is known.
    gradient = a.mT @ x + x @ b.mT

    def recorded() -> torch.Tensor:
        return sylvinit.solve_sylvester(*inputs, assume_a=structure)

    def backward() -> torch.Tensor:
        return torch.autograd.grad(recorded(), inputs, gradient)[2]

    entrants = [
        ours(problem, structure),
        Contender("forward recorded", recorded),
        Contender("forward + backward", backward),
    ]
    name = f"gradient, {kind} {size}"
    samples = bench.row(name, entrants, problem.error)
    bench.ratio(name, samples, "forward recorded", structure)
    bench.ratio(name, samples, "forward + backward", structure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true", help=f"also {LARGE}, tens of minutes")
    parser.add_argument("--up-to", type=int, default=LARGE[1], help="largest d of these rows")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--row-seconds", type=float, default=120.0, help="no new round after")
    parser.add_argument("--sample-seconds", type=float, default=0.05)
    parser.add_argument("--slow", type=float, default=60.0)
    parser.add_argument("--only", help="rows whose function name contains this")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    bench = Bench(options)
    sizes = [*POSITIVE, LARGE] if options.large else POSITIVE
    sizes = [size for size in sizes if size[1] <= options.up_to]
    steps: list[partial[None]] = [
        *(partial(_bench_positive, bench, k, d) for k, d in sizes),
        partial(_bench_deficient, bench, *POSITIVE[3]),
        partial(_bench_batch, bench, "positive"),
        *(partial(_bench_general, bench, k, d) for k, d in GENERAL),
        partial(_bench_batch, bench, "general"),
        partial(_bench_sweep, bench, "positive", "pos", *POSITIVE[3]),
        partial(_bench_sweep, bench, "general", "gen", *POSITIVE[3]),
        partial(_bench_lowrank, bench),
        *(partial(_bench_gradient, bench, "positive", "pos", s) for s in (POSITIVE[3], BATCH)),
        *(partial(_bench_gradient, bench, "general", "gen", s) for s in (POSITIVE[3], BATCH)),
    ]
    for step in steps:
        if not options.only or options.only in step.func.__name__:
            step()
            _store(bench, options)
    print()
    for target in bench.targets:
        verdict = "met" if target["met"] else "MISSED"
        print(f"{verdict:6s}  {target['target']:48s} {target['value']:7.2f}")


def _store(bench: Bench, options: argparse.Namespace) -> None:
    """After every row: a run that is stopped keeps what it has measured."""
    if options.output is None:
        return
    settings = {key: str(value) for key, value in vars(options).items() if key != "output"}
    result = {
        "environment": environment(),
        "libraries": contenders.libraries(),
        "settings": settings,
        "ratios": bench.ratios,
        "targets": bench.targets,
        "rows": bench.rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
