"""What is told of prepared splits that may not be what was meant: questions seen in training, unknown words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lori_pl.data.pairing import EncodedProblems
from lori_pl.data.template import Encoder

if TYPE_CHECKING:
    from lori_pl.data.datamodule import PreparedSplit

log = logging.getLogger(__name__)

UNKNOWN = 0.01
"""Share of unknown tokens above which a split is told of."""


def warn_of_seen(train: PreparedSplit, held_out: Sequence[PreparedSplit]) -> None:
    """Says which of the splits that are held out have questions of the training split."""
    asked = {problem.question for split in held_out for problem in split.problems}
    seen = {problem.question for problem in train.problems if problem.question in asked}
    for split in held_out:
        if count := sum(problem.question in seen for problem in split.problems):
            log.warning(
                "%s: %d of %d questions are training questions too; accuracy there is not that of unseen problems",
                split.name,
                count,
                len(split.problems),
            )


def warn_of_unknown(name: str, encoded: EncodedProblems, encoder: Encoder) -> None:
    """Says where a tokenizer does not know the words of a split.

    Args:
        name: What the split is called.
        encoded: Its problems.
        encoder: The tokenizer that encoded them.
    """
    unknown = encoder.tokenizer.unk_token_id
    for what, ids in (("question", encoded.questions.values), ("answer", encoded.answers.values)):
        share = float((ids == unknown).mean()) if unknown is not None and len(ids) else 0.0
        if share > UNKNOWN:
            log.warning(
                "%s: the tokenizer does not know %.0f %% of the %s tokens, and models see them all alike; give another "
                "as model.backbone.tokenizer (a folder or hub id)",
                name,
                100 * share,
                what,
            )
