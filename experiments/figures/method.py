"""Draws docs/images/method.png: teacher and student sequences, the shared subspace, and the three losses.

Run in the root of the repository: ``python experiments/figures/method.py [FILE]``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FILE = Path("docs/images/method.png")

INK = "#22303c"
GREY = "#8a97a3"
QUESTION = "#e6eaee"
TEACHER = "#2f6fb3"
TEACHER_LIGHT = "#d5e4f3"
STUDENT = "#c8641e"
STUDENT_LIGHT = "#fae0cd"
SUBSPACE = "#3d8c5f"
SUBSPACE_LIGHT = "#dcefe3"

LAYERS = 3
WIDTH, HEIGHT = 12.6, 5.9


def box(
    axes: Axes, x: float, y: float, width: float, text: str, fill: str, edge: str = INK, height: float = 0.42
) -> None:
    """Draws a token box with its text; x and y are its left and lower edges."""
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.07", facecolor=fill, edgecolor=edge, linewidth=1.1
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2 - 0.01, text, ha="center", va="center", fontsize=10, color=INK)


def states(axes: Axes, lefts: Sequence[float], width: float, y: float, fill: str, edge: str) -> None:
    """Draws a column of hidden states for each token, one cell a layer, from ``y`` upwards."""
    for left in lefts:
        for layer in range(LAYERS):
            cell = Rectangle((left, y + 0.25 * layer), width, 0.21, facecolor=fill, edgecolor=edge, linewidth=0.8)
            axes.add_patch(cell)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    """Draws an arrow, bent where ``bend`` is not zero."""
    patch = FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=12,
        linewidth=1.3,
        color=colour,
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(patch)


def note(axes: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 10, align: str = "left") -> None:
    """Writes text."""
    axes.text(x, y, text, fontsize=size, color=colour, ha=align, va="center")


def draw() -> Figure:
    """Draws the figure."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()

    token, gap, anchor = 0.42, 0.48, 7.0
    column = anchor + 0.375

    # the teacher: question, rationale, answer prompt, answer; its states towards the subspace
    y = 4.92
    note(axes, 0.3, 5.62, "Teacher", TEACHER, 13)
    note(axes, 1.42, 5.605, "explicit chain of thought, frozen", GREY)
    box(axes, 0.3, y, 1.9, "question", QUESTION)
    rationale = [2.4 + gap * i for i in range(9)]
    texts = ["$r_1$", "$r_2$", "$r_3$", "$r_4$", "$r_5$", "$r_6$", "$r_7$", "$\\cdots$", "$r_T$"]
    for left, text in zip(rationale, texts, strict=True):
        box(axes, left, y, token, text, TEACHER_LIGHT, TEACHER)
    box(axes, anchor, y, 0.75, "####", QUESTION)
    box(axes, anchor + 0.85, y, 0.95, "answer", QUESTION)
    states(axes, [*rationale, column - token / 2], token, y - 0.79, TEACHER_LIGHT, TEACHER)

    # the student: question, latents, answer prompt, answer
    y = 0.66
    note(axes, 0.3, 0.24, "Student", STUDENT, 13)
    note(axes, 1.42, 0.225, "K recurrent latents, no token is sampled", GREY)
    box(axes, 0.3, y, 1.9, "question", QUESTION)
    box(axes, 2.4, y, 0.66, "<bot>", QUESTION)
    latents = [3.22 + 0.6 * i for i in range(5)]
    for left, text in zip(latents, ["$z_1$", "$z_2$", "$z_3$", "$\\cdots$", "$z_K$"], strict=True):
        box(axes, left, y, token, text, STUDENT_LIGHT, STUDENT)
    box(axes, 6.2, y, 0.66, "<eot>", QUESTION)
    box(axes, anchor, y, 0.75, "####", QUESTION)
    box(axes, anchor + 0.85, y, 0.95, "answer", QUESTION)
    states(axes, [*latents, column - token / 2], token, y + 0.5, STUDENT_LIGHT, STUDENT)
    for left, right in zip([2.52, *latents], latents, strict=False):
        arrow(axes, (left + token / 2, y - 0.02), (right + token / 2, y - 0.02), STUDENT, 0.5)

    # the subspace in which both are described
    left, bottom, width, height = 2.4, 2.29, 4.26, 1.42
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=SUBSPACE_LIGHT,
            edgecolor=SUBSPACE,
            linewidth=1.3,
        )
    )
    middle = left + width / 2
    note(axes, middle, 3.48, "low-rank tensor subspace (Tucker factors)", SUBSPACE, 11, "center")
    note(axes, middle, 3.04, r"$G_t = U_L^{\top}\,\frac{H_t - M}{s}\,U_D$", INK, 14, "center")
    note(axes, middle, 2.55, r"over tokens:  mean $\mu$,  second order $\Sigma$", INK, 11, "center")
    arrow(axes, (middle, 4.09), (middle, bottom + height + 0.03), TEACHER)
    note(axes, middle + 0.12, 3.92, "$H^T$: layers × T tokens × hidden", TEACHER)
    arrow(axes, (middle, 1.93), (middle, bottom - 0.03), STUDENT)
    note(axes, middle + 0.12, 2.08, "$H^S$: layers × K latents × hidden", STUDENT)

    # the losses
    x = 9.55
    axes.plot([column, column], [4.09, 3.2], color=TEACHER, linewidth=1.3)
    axes.plot([column, column], [2.8, 1.93], color=STUDENT, linewidth=1.3)
    axes.plot([column, column], [3.2, 2.8], color=INK, linewidth=1.3, linestyle=(0, (3, 2)))
    arrow(axes, (column, 3.9), (x - 0.12, 3.9), INK)
    note(axes, x, 4.1, "anchor level", INK, 11)
    note(axes, x, 3.78, r"$w_{anchor} L_{anchor}$   the states that", INK, 11)
    note(axes, x, 3.48, "predict the answer's first token", INK, 11)
    arrow(axes, (left + width + 0.04, 2.6), (x - 0.12, 2.6), SUBSPACE)
    note(axes, x, 2.88, "rationale level", SUBSPACE, 11)
    note(axes, x, 2.56, r"$w_\mu L_{mean}$   $\mu_S$ against $\mu_T$", INK, 11)
    note(axes, x, 2.24, r"$w_\Sigma L_{cov}$     $\Sigma_S$ against $\Sigma_T$", INK, 11)
    arrow(axes, (anchor + 1.84, 0.87), (x - 0.12, 0.87), STUDENT)
    note(axes, x, 1.03, "task", STUDENT, 11)
    note(axes, x, 0.7, r"$L_{task}$   cross-entropy on the answer", INK, 11)
    return figure


def main(arguments: Sequence[str]) -> None:
    """Writes the picture to the file named, by default docs/images/method.png."""
    file = Path(arguments[0]) if arguments else FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    # no version or date in the file: the same code gives the same bytes
    draw().savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
