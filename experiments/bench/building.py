"""How close the building of a cache is to this machine's arithmetic, and what that says of a large teacher on a GPU.

Run in the root of the repository: ``python experiments/bench/building.py``. The share is that of the matrix product's
speed which the teacher's passes and their statistics reach together; the hours are those of GSM8K-Aug and
Llama-3.2-1B on a GPU of the given speed at the same share. The last line is JSON.
"""

from __future__ import annotations

import json
import time

import torch
from common import bucketed, encoder, lori, median, parser, problems

from lori_pl.arithmetic import Arithmetic

BATCHES = 4
PROBLEMS, PARAMETERS, TOKENS = 385_620, 0.973e9, 160  # GSM8K-Aug; Llama-3.2-1B without its table; question to answer


def product_speed() -> float:
    """Floating-point operations a second of a large fp32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / median(times)


def main() -> None:
    options = parser(__doc__ or "", without=["record"])
    options.add_argument("--gpu", type=float, default=312e12, help="the GPU's operations a second (A100, bf16)")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    batches = bucketed(problems(1024, encoder()), arguments.batch, BATCHES)
    method = lori(arguments.shape, 6, batches, cached=False)
    assert method.teacher is not None

    def build() -> None:
        for batch in batches:
            signals = method.teacher_signals(batch)
            for term in method.active_terms:
                term.pack(term.teacher_statistics(signals))

    with Arithmetic().counting() as counter:
        build()
    operations = counter.total
    times, speeds = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        build()
        times.append(time.perf_counter() - start)
        speeds.append(product_speed())
    share = median([operations / seconds / speed for seconds, speed in zip(times, speeds, strict=True)])
    hours = 2 * PARAMETERS * TOKENS * PROBLEMS / (arguments.gpu * share) / 3600
    rate = BATCHES * arguments.batch / median(times)
    print(f"{rate:.0f} problems a second, {100 * share:.0f} % of the matrix product's speed")
    print(json.dumps({"share": round(share, 3), "problems_a_second": round(rate, 1), "hours": round(hours, 2)}))


if __name__ == "__main__":
    main()
