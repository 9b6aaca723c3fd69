"""How much sooner a LoRi student answers than its explicit-CoT teacher, one question at a time.

Run in the root of the repository, after ``make quickstart``: ``python experiments/bench/answer.py``. Both answer the
same problems of 4 and more steps. The last line is the bar's row as JSON.
"""

from __future__ import annotations

import numpy as np
import torch
from common import parser, report

from lori_pl.data.sources import Synthetic
from lori_pl.evaluation.benchmark import Timing, time_answers
from lori_pl.models.reasoner import LatentReasoner


def main() -> None:
    options = parser(__doc__ or "", without=["shape", "batch"])
    options.add_argument("--student", default="runs/quickstart/student", help="folder of the LoRi student")
    options.add_argument("--teacher", default="lori_pl/assets/teacher", help="folder of the explicit-CoT teacher")
    options.add_argument("--problems", type=int, default=200, help="problems")
    options.add_argument("--max_steps", type=int, default=5, help="longest chains: 5 for quick's student, 7 for full's")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    problems = Synthetic(test=2 * arguments.problems, max_steps=arguments.max_steps).load("test").problems
    problems = [problem for problem in problems if len(problem.steps) >= 4][: arguments.problems]
    reasoners = {name: LatentReasoner.from_pretrained(getattr(arguments, name)) for name in ("student", "teacher")}
    times: dict[str, list[Timing]] = {name: [] for name in reasoners}
    for _ in range(arguments.rounds):
        for name, reasoner in reasoners.items():
            times[name].append(time_answers(reasoner, problems, 1, 80, repeats=1))
    ratios = [
        float(np.median(teacher.total / student.total))
        for student, teacher in zip(times["student"], times["teacher"], strict=True)
    ]
    shown = {
        name: {
            "milliseconds": round(float(np.median([np.median(timing.total) for timing in found])), 2),
            "accuracy": float(found[0].correct.mean()),
            "passes": float(found[0].passes.mean()),
        }
        for name, found in times.items()
    }
    for name, values in shown.items():
        print(f"{name:8} {values}")
    report("answer_speedup", float(np.median(ratios)), 4.0, arguments.record, **shown)


if __name__ == "__main__":
    main()
