"""`preview`: what the data becomes, before any training."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lori_pl.commands.lightning import parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.pairing import ExplicitBatch, PairedBatch, paired_batch
from lori_pl.errors import LoriError, printable
from lori_pl.tables import print_whole

BINS = 10


def main(arguments: list[str]) -> int:
    """Shows one training pair with its tokens, masks and anchor, the lengths, and what was dropped.

    Args:
        arguments: ``--row``, and what ``fit`` takes.

    Raises:
        LoriError: If the data is bad, or there is no such row.
    """
    options, rest = _parser().parse_known_args(arguments)
    row: int = options.row
    cli = parse(["fit", *rest])
    data: PairedDataModule = cli.datamodule
    data.setup("fit")
    split = data.splits["train"]
    if not 0 <= row < len(split.problems):
        raise LoriError(f"--row {row}: the training split has rows 0 to {len(split.problems) - 1}")
    console = Console()
    show_pair(console, data, split, row, cli.model.latents)
    for each in (*data.splits.values(), *data.tests.values()):
        show_lengths(console, each)
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "preview",
        "Show one training pair with its tokens, masks and anchor, the lengths, and what was dropped. Nothing is "
        "trained, and no model is loaded.",
    )
    parser.add_argument("--row", type=int, default=0, metavar="N", help="the training pair, from 0 (default: 0)")
    return parser


def show_pair(console: Console, data: PairedDataModule, split: PreparedSplit, row: int, latents: int) -> None:
    """Prints problem ``row`` as the teacher and as the student see it."""
    problem = split.problems[row]
    batch = paired_batch([row], split.steps, split.student, split.teacher)
    console.rule(Text(printable(f"problem {problem.id}")))
    console.print(Text(printable(problem.question)))
    console.print(Text(printable(f"steps: {'  '.join(problem.steps)}\nanswer: {problem.answer}")))
    teacher_encoder = (split.teacher or split.student).encoder
    console.rule(Text("teacher: [rationale], ANCHOR, <predicted>"))
    console.print(_explicit_text(batch.teacher, teacher_encoder.tokenizer))
    console.rule(Text(f"student: question, {latents} latents, ANCHOR, <predicted>"))
    console.print(_student_text(batch, data, latents))


def _explicit_text(batch: ExplicitBatch, tokenizer: object) -> Text:
    tokens = tokenizer.convert_ids_to_tokens(batch.ids[0].tolist())  # type: ignore[attr-defined]
    rationale = set(batch.rationale_index[0][batch.rationale_mask[0]].tolist())
    predicted = set(batch.target_index.tolist())
    text = Text()
    for i, token in enumerate(tokens):
        shown = f"[{token}]" if i in rationale else f"<{token}>" if i in predicted else token
        _append(text, shown, i in rationale, i in predicted, i == int(batch.anchor[0]))
    return text


def _student_text(batch: PairedBatch, data: PairedDataModule, latents: int) -> Text:
    tokenizer = data.encoder.tokenizer
    text = Text()
    for token in tokenizer.convert_ids_to_tokens(batch.question[0].tolist()):
        _append(text, token, False, False, False)
    if data.encoder.markers:
        for k in range(latents):
            _append(text, f"z{k + 1}", True, False, False)
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(batch.answer[0].tolist())):
        predicted = bool(batch.target_mask[0, i])
        _append(text, f"<{token}>" if predicted else token, False, predicted, i == batch.anchor)
    return text


def _append(text: Text, token: str, thought: bool, predicted: bool, anchor: bool) -> None:
    style = "bold reverse" if anchor else "green" if predicted and not thought else "cyan" if thought else ""
    text.append(printable("ANCHOR:" + token if anchor else token), style=style)
    text.append(" ")


def show_lengths(console: Console, split: PreparedSplit) -> None:
    """Prints the counts of a split and a histogram of its lengths in tokens."""
    lengths = split.student.lengths()
    dropped = ", ".join(f"{count} {reason}" for reason, count in split.counts.items() if count) or "nothing"
    title = Text(printable(f"{split.name}: {len(split.problems)} problems; left out: {dropped}"))
    table = Table(title=title, title_justify="left")
    table.add_column("tokens", justify="right")
    table.add_column("problems", justify="right")
    table.add_column("")
    counts, edges = np.histogram(lengths, bins=min(BINS, max(1, int(np.ptp(lengths)))))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(f"{low:.0f} to {high:.0f}", str(count), "█" * round(40 * count / counts.max()))
    print_whole(table, console)
    parts = {
        "question": split.student.questions,
        "rationale": split.student.rationales,
        "answer": split.student.answers,
    }
    means = ", ".join(f"{name} {rows.lengths.mean():.1f}" for name, rows in parts.items())
    console.print(f"tokens on average: {means}; longest pair {lengths.max()}")
