"""The matrix products of a step of SFT and nothing else: no library is faster than this in float32 on this machine.

    python floor.py FOLDER          prints the median seconds of the products of one step of `workload.Shape`

Counted is what both tools must multiply: for every token the weights of all layers, once forward and twice backward (for the
input and for the weights), and the output layer where something is predicted. Attention's own products, norms, softmax,
optimizer and loop are left out, so that a tool's speed is below TRL's time over this.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from workload import Shape, read_shape


def products(shape: Shape) -> list[tuple[int, int, int, int]]:
    """(how often, rows, inputs, outputs) of the weight matrices that a step of SFT multiplies with."""
    rows = shape.rows * shape.context
    read = rows - shape.rows * shape.prompt  # where the assistant's tokens are predicted
    attention = shape.heads * shape.head_dim
    return [
        (3 * shape.layers, rows, shape.hidden, attention),
        (shape.layers, rows, attention, shape.hidden),
        (2 * (shape.layers - 1), rows, shape.hidden, shape.feed_forward),
        (shape.layers - 1, rows, shape.feed_forward, shape.hidden),
        (2, read, shape.hidden, shape.feed_forward),  # the last layer's feed-forward is only needed there
        (1, read, shape.feed_forward, shape.hidden),
        (1, read, shape.hidden, shape.vocab_size),
    ]


def measure(shape: Shape, repeats: int = 7) -> float:
    """Seconds of one step's products, forward and backward: for each shape the median of `repeats`, after one to warm up."""
    import torch

    torch.set_num_threads(shape.threads)
    total = 0.0
    for often, rows, inputs, outputs in products(shape):
        x, w, g = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            _ = x @ w.T, g @ w, g.T @ x
            times.append(time.perf_counter() - began)
        total += often * statistics.median(times[1:])
    return total


if __name__ == "__main__":
    print(measure(read_shape(Path(sys.argv[1]))))
