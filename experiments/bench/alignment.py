"""The alignment of a large model's trajectories against a forward and backward pass of its blocks over the same tokens.

Run in the root of the repository: ``python experiments/bench/alignment.py``. It needs about 7 GB of memory. The last
line is the bar's row as JSON.
"""

from __future__ import annotations

import torch
from common import in_turns, median, parser, report
from transformers import LlamaConfig, LlamaModel

from lori_pl.alignment import AnchorAlignment, LowRankAlignment, Signals, TrajectoryShape

LAYERS, HIDDEN, RANK, LATENTS, RATIONALE = 16, 2048, 64, 6, 40


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--factors", default="learned", choices=["shared", "learned"], help="student_factors")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = TrajectoryShape(LAYERS, HIDDEN)
    low_rank, anchor = LowRankAlignment(rank_hidden=RANK, student_factors=arguments.factors), AnchorAlignment()
    terms = [low_rank, anchor]
    for term in terms:
        term.prepare(shape, shape, [])
    teacher = Signals(
        torch.randn(32, LAYERS, RATIONALE, HIDDEN),
        torch.ones(32, RATIONALE, dtype=torch.bool),
        torch.randn(32, LAYERS, HIDDEN),
    )
    for sweep in range(3):
        for term in terms:
            if sweep < term.sweeps:
                term.begin_sweep(sweep)
                term.observe(sweep, teacher, teacher if term.observes_student else None)
                term.end_sweep(sweep)
    part = Signals(
        teacher.trajectory[: arguments.batch], teacher.mask[: arguments.batch], teacher.anchor[: arguments.batch]
    )
    packed = [term.pack(term.teacher_statistics(part)) for term in terms]
    trajectory = torch.randn(arguments.batch, LAYERS, LATENTS, HIDDEN, requires_grad=True)
    state = torch.randn(arguments.batch, LAYERS, HIDDEN, requires_grad=True)

    def align() -> None:
        student = Signals(trajectory, None, state)
        losses = [
            loss
            for term, statistics in zip(terms, packed, strict=True)
            for loss in term(student, term.unpack(statistics)).values()
        ]
        torch.stack(losses).sum().backward()
        trajectory.grad = state.grad = None

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    blocks = LlamaModel(config)
    inputs = torch.randn(arguments.batch, LATENTS, HIDDEN)

    def stack() -> None:
        blocks(inputs_embeds=inputs, use_cache=False).last_hidden_state.sum().backward()
        blocks.zero_grad(set_to_none=True)

    aligned, whole = in_turns([align, stack], arguments.rounds)
    milliseconds = {"alignment": 1000 * median(aligned), "blocks": 1000 * median(whole)}
    share = median([a / b for a, b in zip(aligned, whole, strict=True)])
    report("align_share_large", share, 0.1, arguments.record, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
