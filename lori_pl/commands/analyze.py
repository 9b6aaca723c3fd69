"""`analyze`: the rank of reasoning of teacher and student, and what the student's latents hold."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.text import Text
from torch import Tensor

from lori_pl.alignment import LowRankAlignment
from lori_pl.analysis.interventions import Interventions, Outcome, Plan
from lori_pl.analysis.latents import LatentPart, inspect_latents
from lori_pl.analysis.rank import RankPart, measure_rank
from lori_pl.analysis.report import JSON, draw, show, tables, write
from lori_pl.analysis.streams import Reader, batches_of, latent_states
from lori_pl.checkpoint_files import read_checkpoint
from lori_pl.commands.device import add_device, find_device
from lori_pl.commands.lightning import HERE, LoriCLI, parse
from lori_pl.commands.own_options import OwnOptions
from lori_pl.data.datamodule import PairedDataModule, PreparedSplit
from lori_pl.data.pairing import EncodedProblems
from lori_pl.data.template import Encoder
from lori_pl.data.tokenizer import load_tokenizer
from lori_pl.errors import LoriError
from lori_pl.evaluation.records import git_commit
from lori_pl.files import check_place, replace_folder
from lori_pl.methods import Method
from lori_pl.methods.distillation import Distillation
from lori_pl.methods.optimization import forward_context
from lori_pl.methods.positions import check_questions
from lori_pl.methods.teachers import load_teacher
from lori_pl.models.backbone import Backbone
from lori_pl.models.hidden import LayerSelection
from lori_pl.models.teacher import FrozenTeacher
from lori_pl.tables import as_text

log = logging.getLogger(__name__)

FEWEST = 4
"""Fewest problems: two halves, and in each a problem to swap latents with."""


@dataclass
class Subject:
    """What is analysed.

    Args:
        cli: The parsed command line, with method and data.
        split: The problems.
        teacher: The frozen teacher, if there is one.
        teacher_name: Where it comes from.
        device: Where everything runs.
    """

    cli: LoriCLI
    split: PreparedSplit
    teacher: FrozenTeacher | None
    teacher_name: str | None
    device: torch.device

    @property
    def method(self) -> Method:
        """The method, its student loaded."""
        method: Method = self.cli.model
        return method

    @property
    def data(self) -> PairedDataModule:
        """The data module."""
        data: PairedDataModule = self.cli.datamodule
        return data

    @property
    def layers(self) -> tuple[LayerSelection, LayerSelection]:
        """Layers of the student's and the teacher's trajectories: those of the alignment, where there is one."""
        method = self.method
        if isinstance(method, Distillation):
            return method.student_layers, method.layers
        return LayerSelection(), LayerSelection()


def main(arguments: list[str]) -> int:
    """Analyses a student.

    Args:
        arguments: ``--ckpt_path``, ``--folder``, options, and what ``fit`` takes.

    Raises:
        LoriError: If the student, the teacher or the data is bad, an option is out of range, or the folder holds
            something.
    """
    options, rest = _parser().parse_known_args(arguments)
    folder = Path(options.folder)
    if folder.resolve() == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise LoriError(f"{folder} holds something already; remove it or give another --folder")
    for name, least in (("problems", FEWEST), ("top_k", 1), ("rank", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise LoriError(f"--{name} is {getattr(options, name)}: give {least} or more")
    check_place(folder)
    subject = load(options, rest)
    check_sizes(subject, options.rank, options.top_k)
    # models run as in the config's evaluations
    with forward_context(subject.cli.options["trainer"].get("precision"), subject.device.type):
        unchanged, interventions = answer_all(subject, options.seed)
        rank = rank_part(subject, unchanged.correct, options.rank, options.seed)
        latents = latent_part(subject, interventions, unchanged, options.top_k)
    result = described(subject, options, unchanged)
    result["rank"] = rank.summary()
    result["latents"] = latents.summary() if latents is not None else {"left_out": [no_latents(subject)]}
    low, high = unchanged.bounds
    accuracy = f"accuracy {100 * unchanged.correct.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"
    name = f"{subject.method.label} on {subject.split.name}: {len(unchanged.correct)} problems, {accuracy}"
    made = tables(name, rank, latents)
    result["tables"] = [as_text(each) for each in made]
    figures = draw(rank, list(learned_factors(subject.method)), latents, subject.data.rationale_tokens)
    replace_folder(folder, lambda part: write(part, result, figures))
    console = Console()
    show(console, made, rank, latents)
    if latents is None:
        console.print(Text(no_latents(subject)))
    console.print(Text(f"{folder / JSON}; {', '.join(f'{name}.png' for name in figures)}"))
    log.info("TensorBoard: tensorboard --logdir %s", folder)
    return 0


def _parser() -> OwnOptions:
    parser = OwnOptions(
        "analyze",
        "Measure the rank of reasoning (spectra of teacher and student by mode, layer and position, with controls; the "
        "angles between their subspaces), and what the student's latents hold (logit lens, results of the rationale, "
        "accuracy under interventions).",
    )
    parser.add_argument(
        "--ckpt_path", required=True, metavar="PATH", help="a checkpoint of a run or a student's folder"
    )
    parser.add_argument("--folder", required=True, metavar="OUT", help="the folder to make; must not hold anything")
    parser.add_argument(
        "--teacher", metavar="MODEL", help="the teacher's folder or hub id, or none (default: model.teacher's)"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="train, validation, or the name of a test set (default: the first test set)"
    )
    parser.add_argument("--problems", type=int, default=256, metavar="N", help="the first N problems (default: 256)")
    parser.add_argument("--top_k", type=int, default=5, metavar="K", help="tokens of the logit lens (default: 5)")
    parser.add_argument(
        "--rank", type=int, default=16, metavar="R", help="rank of the subspaces that are compared (default: 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the controls and of the swaps (default: 0)")
    add_device(parser)
    return parser


def load(options: Any, rest: list[str]) -> Subject:
    """Loads data, student and teacher, and checks what can be checked.

    Raises:
        LoriError: As `main`.
    """
    device = find_device(options.device)
    cli = parse(["test", *rest, *HERE, "--ckpt_path", str(options.ckpt_path)])
    method, data = cli.model, cli.datamodule
    split = _problems(data, options.split, options.problems)
    checkpoint = cli.options.get("ckpt_path")
    saved = read_checkpoint(checkpoint) if checkpoint else None
    if saved is not None:
        method.on_load_checkpoint(saved)
    method.configure_model()
    if saved is not None:
        method.load_state_dict(saved["state_dict"])
    method.set_latents()
    student = method.student.to(device).eval()
    check_questions(split, student.lm, method.positions_before_answer)
    subject = Subject(cli, split, None, None, device)
    backbone = _teacher_backbone(options.teacher, method)
    if backbone is not None:
        teacher = load_teacher(backbone, data.template, subject.layers[1])
        subject.teacher, subject.teacher_name = teacher.to(device), backbone.name
        encoder = Encoder(
            load_tokenizer(backbone.tokenizer_name, False, backbone.revision), data.template, markers=False
        )
        split.teacher = EncodedProblems(split.problems, encoder, data.rationale_tokens)
    for name, reader in readers(subject).items():
        reader.check(name, [problem.id for problem in split.problems])
    return subject


def _problems(data: PairedDataModule, name: str | None, count: int) -> PreparedSplit:
    tests = data.tested
    name = name or next(iter(tests))
    data.limits = {kind: count if most is None else min(most, count) for kind, most in data.limits.items()}
    if name in tests:
        split = data.prepare(tests[name], "test", name)
    elif name == "train" or name == "validation":
        split = data.prepare(data.source, "train" if name == "train" else "validation")
    else:
        raise LoriError(f"--split {name}: give one of {', '.join(['train', 'validation', *tests])}")
    if len(split.problems) < FEWEST:
        raise LoriError(
            f"{name} has {len(split.problems)} problems, and an analysis needs {FEWEST}; give another split"
        )
    if bare := [problem.id for problem in split.problems if not problem.answer]:
        raise LoriError(f"{name}: problem {bare[0]} has no answer, and accuracy needs one; give another --split")
    return split


def _teacher_backbone(given: str | None, method: Method) -> Backbone | None:
    if given == "none":
        return None
    if given is not None:
        return Backbone(name=given, dtype=method.backbone.dtype, attention=method.backbone.attention)
    return method.teacher_backbone if isinstance(method, Distillation) else None


def readers(subject: Subject) -> dict[str, Reader]:
    """What reads problems written out: the student, and the teacher where there is one."""
    ours, theirs = subject.layers
    size, split = subject.data.eval_batch_size, subject.split
    found = {}
    if subject.teacher is not None and split.teacher is not None:
        found["teacher"] = Reader(subject.teacher.lm, split.teacher, theirs, size)
    found["student"] = Reader(subject.method.student.lm, split.student, ours, size)
    return found


def check_sizes(subject: Subject, rank: int, top_k: int) -> None:
    """Refuses a rank at which every subspace is the whole space, and more tokens than there are.

    Raises:
        LoriError: Naming the option and the model's size.
    """
    for name, reader in readers(subject).items():
        if rank >= (hidden := reader.lm.config.get_text_config().hidden_size):
            raise LoriError(
                f"--rank is {rank}, but the {name}'s hidden states have {hidden} entries, so that every subspace would "
                f"be the whole space: give less than {hidden}"
            )
    if top_k > (words := subject.method.student.lm.get_input_embeddings().weight.shape[0]):
        raise LoriError(f"--top_k is {top_k}, but the student's vocabulary has {words} tokens: give {words} or less")


def questions(subject: Subject) -> list[np.ndarray]:
    """The encoded questions."""
    encoded = subject.split.student.questions
    return [encoded[i] for i in range(len(encoded))]


def answer_all(subject: Subject, seed: int) -> tuple[Outcome, Interventions]:
    """Answers all problems, as an evaluation does."""
    problems = subject.split.problems
    plan = Plan.draw(len(problems), subject.data.eval_batch_size, seed)
    method = subject.method
    interventions = Interventions(method.student, problems, questions(subject), method.max_new_tokens, plan)
    return interventions.unchanged(), interventions


def learned_factors(method: Method) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors (U_L, U_D) of a fitted alignment, where the checkpoint holds one that projects."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    terms = method.active_terms if isinstance(method, Distillation) and method.folder is None else []
    for term in terms:
        if not isinstance(term, LowRankAlignment) or not term.is_fitted:
            continue
        space = term.subspace
        sides = {"learned/shared subspace": space.target}
        if space.own is not None:
            sides = {"learned/teacher's side": space.target, "learned/student's side": space.own}
        for name, side in sides.items():
            if (factors := side.factors()) is not None:
                found[name] = (factors[0].detach(), factors[1].detach())
    return found


def rank_part(subject: Subject, correct: np.ndarray, rank: int, seed: int) -> RankPart:
    """Measures the rank of reasoning."""
    student = subject.method.student
    encoded = questions(subject)

    def latents(rows: np.ndarray) -> Any:
        batches = batches_of(rows, subject.data.eval_batch_size)
        return latent_states(student, encoded, subject.layers[0], batches)

    given = latents if student.thought.latents else None
    words = student.reasoning == "words"
    with torch.no_grad():
        factors = learned_factors(subject.method)
        return measure_rank(readers(subject), given, words, correct, subject.split.steps, factors, rank, seed)


def latent_part(subject: Subject, interventions: Interventions, unchanged: Outcome, top_k: int) -> LatentPart | None:
    """Looks into the latents; ``None`` where there is none."""
    student, split = subject.method.student, subject.split
    if student.thought.latents == 0:
        return None
    encoder = split.student.encoder
    return inspect_latents(student, split.problems, questions(subject), interventions, unchanged, encoder, top_k)


def no_latents(subject: Subject) -> str:
    """Why there is no latent part."""
    student = subject.method.student
    return f"latents: none to look into, the student reasons by '{student.reasoning}' with {student.thought.latents}"


def described(subject: Subject, options: Any, unchanged: Outcome) -> dict[str, Any]:
    """What the analysis was made of."""
    student = subject.method.student
    low, high = unchanged.bounds
    parser = subject.cli._parser(subject.cli.subcommand)
    return {
        "commit": git_commit(),
        "ckpt_path": str(options.ckpt_path),
        "teacher": subject.teacher_name,
        "method": subject.method.label,
        "reasoning": student.reasoning,
        "latents_taken": student.thought.latents,
        "split": subject.split.name,
        "problems": len(subject.split.problems),
        "ids": [problem.id for problem in subject.split.problems],
        "rationale_tokens": subject.data.rationale_tokens,
        "seed": options.seed,
        "top_k": options.top_k,
        "subspace_rank": options.rank,
        "device": str(subject.device),
        "accuracy": {"value": float(unchanged.correct.mean()), "low": low, "high": high},
        "config": yaml.safe_load(parser.dump(subject.cli.options.clone(), skip_none=False)),
    }
