"""A LoRi step from the cache against an explicit-CoT step of the same model and batches, and the alignment's share.

Run in the root of the repository: ``python experiments/bench/step.py --shape llama --batch 8``. The last line is the
bar's row as JSON.
"""

from __future__ import annotations

import torch
from common import bucketed, encoder, explicit, in_turns, lori, median, parser, problems, report, stepper

LATENTS = 6
BATCHES = 6


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--latents", type=int, default=LATENTS, help="K")
    options.add_argument("--share", action="store_true", help="report the alignment's share of the step instead")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    encoded = problems(2048, encoder())
    batches = bucketed(encoded, arguments.batch, BATCHES)
    ours = lori(arguments.shape, arguments.latents, batches, cached=True)
    alone = lori(arguments.shape, arguments.latents, batches, cached=False, alignment=None, anchor=None)
    methods = {"lori": ours, "latent_only": alone, "explicit": explicit(arguments.shape)}
    steps = {name: stepper(method) for name, method in methods.items()}

    def task(name: str) -> None:
        for batch in batches:
            steps[name](batch)

    times = dict(zip(steps, in_turns([lambda n=n: task(n) for n in steps], arguments.rounds), strict=True))
    milliseconds = {name: 1000 * median(found) / BATCHES for name, found in times.items()}
    for name, value in milliseconds.items():
        print(f"{name:12} {value:8.1f} ms a step")
    if arguments.share:
        share = median([(a - b) / a for a, b in zip(times["lori"], times["latent_only"], strict=True)])
        report("align_share", share, 0.05, arguments.record, milliseconds=milliseconds)
        return
    ratio = median([a / b for a, b in zip(times["lori"], times["explicit"], strict=True)])
    bar = f"lori_step_{arguments.shape}_b{arguments.batch}"
    report(bar, ratio, 1.0, arguments.record, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
