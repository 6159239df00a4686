"""float32 matrix products by PyTorch's own library and by oneDNN, in GFLOP/s: why `tercet.model.ops.linear` is there.

    python benchmarks/products.py [--threads 2]

Shapes are those of a layer of the model in `workload.py`: forward, the gradient of the input, the gradient of the
weight. The two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tercet.model.ops import linear as kernels

SHAPES = (
    (1024, 256, 256),
    (1024, 256, 768),
    (1024, 768, 256),
    (768, 256, 2048),
    (64, 256, 768),
)  # rows, inputs, outputs
REPEATS = 25


def speeds(ways: dict[str, Callable[[], Tensor]], flops: float) -> dict[str, float]:
    """GFLOP/s of each way: the median of REPEATS, in turns, after two to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(REPEATS + 2):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: flops / statistics.median(t) / 1e9 for name, t in times.items()}


def ways(x: Tensor, w: Tensor, g: Tensor) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Each product of a linear layer, by PyTorch and by oneDNN."""
    return {
        "x Wᵀ": (lambda: x @ w.T, lambda: kernels.matmul(x, w)),
        "g W": (lambda: g @ w, lambda: kernels.matmul(g, w.T)),
        "gᵀ x": (lambda: g.T @ x, lambda: kernels.weight_gradient(g, x)),
    }


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    if not kernels.ONEDNN:
        raise SystemExit("oneDNN is not used on this processor: tercet.model.ops.linear.ONEDNN is False")
    kernels.WORTH = 1
    print(f"{'rows, in, out':<18}{'product':<8}{'PyTorch':>9}{'oneDNN':>9}{'ratio':>7}")
    for rows, inputs, outputs in SHAPES:
        pairs = ways(torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs))
        for name, (plain, fast) in pairs.items():
            found = speeds({"torch": plain, "onednn": fast}, 2.0 * rows * inputs * outputs)
            print(
                f"{rows!s:<5} {inputs!s:<5} {outputs!s:<6}{name:<8}{found['torch']:9.0f}{found['onednn']:9.0f}"
                f"{found['onednn'] / found['torch']:7.2f}"
            )


if __name__ == "__main__":
    main()
