"""How much sooner a test set is answered in batches of like length than as its file has it.

Run in the root of the repository: ``python experiments/bench/evaluation.py``, the shipped teacher on the embedded
world, or ``--source gsm8k --path FOLDER``. Both give the same answers. The last line is the row as JSON.
"""

from __future__ import annotations

import torch
from common import in_turns, median, parser, report
from torch.utils.data import DataLoader

from lori_pl.data.datamodule import PairedDataModule, Reader
from lori_pl.data.loading import collate_pairs
from lori_pl.data.pairing import PairedBatch
from lori_pl.data.sources import SOURCES
from lori_pl.models.reasoner import LatentReasoner


def main() -> None:
    options = parser(__doc__ or "", without=["shape", "batch"])
    options.add_argument("--source", choices=["synthetic", "gsm8k", "svamp", "prosqa"], default="synthetic")
    options.add_argument("--path", help="folder of its files")
    options.add_argument("--problems", type=int, default=1024, help="problems")
    options.add_argument("--tokens", type=int, default=48, help="most new tokens")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    source = SOURCES[arguments.source](**({"path": arguments.path} if arguments.path else {}))
    reasoner = LatentReasoner.from_pretrained("lori_pl/assets/teacher").eval()
    data = PairedDataModule(source, test_problems=arguments.problems, max_length=160, reader=Reader(markers=False))
    data.setup("test")
    (split,) = data.tests.values()
    (by_length,) = data.test_dataloader()
    rows = list(range(len(split.problems)))
    as_filed: DataLoader[PairedBatch] = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=data.eval_batch_size,
        collate_fn=collate_pairs(split),
    )
    answers: dict[str, dict[int, list[int]]] = {"filed": {}, "length": {}}
    padded: dict[str, float] = {}

    def answer(name: str, loader: DataLoader[PairedBatch]) -> None:
        slots = read = 0
        for batch in loader:
            made = reasoner.generate(batch.question, batch.question_mask, max_new_tokens=arguments.tokens)
            slots, read = slots + batch.question_mask.numel(), read + int(batch.question_mask.sum())
            for index, tokens in zip(batch.index.tolist(), made.tokens.tolist(), strict=True):
                answers[name][index] = [token for token in tokens if token != reasoner.encoder.pad]
        padded[name] = round(slots / read, 3)

    before, now = in_turns([lambda: answer("filed", as_filed), lambda: answer("length", by_length)], arguments.rounds)
    same = sum(answers["filed"][row] == answers["length"][row] for row in rows) / len(rows)
    ratio = median([a / b for a, b in zip(before, now, strict=True)])
    bar = f"evaluation_by_length_{arguments.source}"
    report(bar, ratio, 1.0, arguments.record, same_answers=same, tokens_read_over_real=padded)


if __name__ == "__main__":
    main()
