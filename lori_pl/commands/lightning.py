"""LightningCLI with the links, guards and reports of lori_pl."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from lori_pl.callbacks.alignment_monitor import AlignmentMonitor
from lori_pl.callbacks.finite_loss import FiniteLoss
from lori_pl.callbacks.predictions import PredictionWriter
from lori_pl.callbacks.throughput import Throughput
from lori_pl.data.datamodule import PairedDataModule
from lori_pl.errors import LoriError
from lori_pl.evaluation.report import write_report
from lori_pl.methods import Method
from lori_pl.methods.checkpoints import read_checkpoint
from lori_pl.models.saving import read_settings, save_reasoner

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
STUDENT = "student"


def _fields(node: Any) -> Mapping[str, Any]:
    """The fields of a parsed class or dataclass, however jsonargparse wraps it."""
    return (node.get("init_args") or node) if node else {}


def method_class(model: Mapping[str, Any]) -> type[Method]:
    """The method that a parsed model config names."""
    module, _, name = str(model["class_path"]).rpartition(".")
    found: type[Method] = getattr(importlib.import_module(module), name)
    return found


def teacher_tokenizer(model: Mapping[str, Any]) -> str | None:
    """The teacher's tokenizer in a parsed model config, if it has a teacher."""
    teacher = _fields(_fields(model).get("teacher"))
    return teacher.get("tokenizer") or teacher.get("name")


def student_tokenizer(model: Mapping[str, Any]) -> str:
    """The student's tokenizer in a parsed model config: its own, or that of the teacher that it starts from."""
    backbone = _fields(_fields(model).get("backbone"))
    own = backbone.get("tokenizer") or backbone.get("name")
    return own or teacher_tokenizer(model) or ""


class LoriCLI(LightningCLI):
    """LightningCLI whose runs have a folder of their own, and whose flags win also on resume."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data must agree on, and adds the options of a run."""
        parser.link_arguments("model", "data.tokenizer", compute_fn=student_tokenizer)
        parser.link_arguments("model", "data.teacher_tokenizer", compute_fn=teacher_tokenizer)
        parser.link_arguments("model", "data.markers", compute_fn=lambda model: method_class(model).uses_markers())
        parser.link_arguments(
            "model", "data.needs_rationale", compute_fn=lambda model: method_class(model).requires_rationale(model)
        )
        parser.link_arguments("data.template", "model.init_args.template")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best checkpoint after fit.")
        parser.add_argument(
            "--predictions", type=str, default="predictions.jsonl", help="Where `predict` writes; must not exist."
        )
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False})

    def _parse_ckpt_path(self) -> None:
        """Leaves the config alone: LightningCLI would put the checkpoint's hyper-parameters over the flags."""

    @property
    def options(self) -> Any:
        """The parsed options of the running sub-command."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Checks what can be checked before anything is loaded, and gives the run its folder."""
        options = self.options
        if options.get("model") is None:
            raise LoriError("no method is chosen: add --config configs/method/NAME.yaml or --model CLASS")
        if not student_tokenizer(options["model"]):
            raise LoriError(
                "model.backbone has neither name nor tokenizer: set --model.backbone.name or --model.backbone.tokenizer"
            )
        trainer = options["trainer"]
        if trainer.get("default_root_dir") is None:
            trainer["default_root_dir"] = f"runs/{self.subcommand}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.root = Path(str(trainer["default_root_dir"]))
        self.folder = self._resolve_checkpoint(options)
        self._check_folder(options)

    def _resolve_checkpoint(self, options: Any) -> str | None:
        """Finds what ``ckpt_path`` means; a student's folder is taken out of it and returned."""
        if self.subcommand is None:
            return None
        path = options.get("ckpt_path")
        if path == "last" and self.subcommand == "fit":
            path = str(self.root / CHECKPOINTS / "last.ckpt")
            if not Path(path).is_file():
                raise LoriError(f"--ckpt_path last: {path} does not exist, so there is nothing to go on with")
            options["ckpt_path"] = path
        if path in (None, "best"):
            if self.subcommand in ("test", "validate", "predict"):
                raise LoriError(
                    f"`{self.subcommand}` needs trained weights: give --ckpt_path, a checkpoint or a student's folder"
                )
            return None
        if Path(str(path)).is_dir():
            read_settings(Path(str(path)))
            options["ckpt_path"] = None
            return str(path)
        if not Path(str(path)).is_file():
            raise LoriError(f"--ckpt_path {path}: no such file or folder")
        return None

    def _check_folder(self, options: Any) -> None:
        resumes = self.subcommand == "fit" and options.get("ckpt_path") is not None
        if self.subcommand not in ("fit", "test") or options["trainer"].get("fast_dev_run") or resumes:
            return
        for name in (CONFIG, SUMMARY, STUDENT):
            if (self.root / name).exists():
                raise LoriError(
                    f"{self.root} holds another run ({name}); give another --trainer.default_root_dir, remove it, or "
                    "go on with it by --ckpt_path last"
                )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the callbacks and the logger that a run has unless its config says otherwise."""
        trainer = self._get(self.config_init, "trainer", default={})
        logger = trainer.get("logger")
        if logger in (None, True) and self.subcommand == "fit":
            kwargs["logger"] = TensorBoardLogger(self.root, name="tensorboard", version="")
        elif logger in (None, True):
            kwargs["logger"] = False
        given = [type(callback) for callback in trainer.get("callbacks") or []]
        extra: list[pl.Callback] = [FiniteLoss(), PredictionWriter(Path(self.options.get("predictions") or ""))]
        if self.subcommand == "fit" and not trainer.get("fast_dev_run"):
            if ModelCheckpoint not in given and trainer.get("enable_checkpointing") is not False:
                extra.append(
                    ModelCheckpoint(
                        self.root / CHECKPOINTS,
                        "best",
                        monitor="val/accuracy",
                        mode="max",
                        save_last=True,
                        enable_version_counter=False,
                    )
                )
            extra += [Throughput(), AlignmentMonitor()]
            if kwargs.get("logger", logger):
                extra.append(LearningRateMonitor("step"))
        if trainer.get("enable_progress_bar") is not False and sys.stdout.isatty():
            extra.append(RichProgressBar())
        self.config_init[self.subcommand]["trainer"]["callbacks"] = [*(trainer.get("callbacks") or []), *extra]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Hands a student's folder to the method."""
        self.model.folder = self.folder

    def before_fit(self) -> None:
        """Saves the config with which this run can be repeated."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        parser = self._parser(self.subcommand)
        parser.save(self.options, self.root / CONFIG, skip_none=False, overwrite=True, multifile=False)

    def after_fit(self) -> None:
        """Tests the best checkpoint, shows the table and exports the student."""
        if self.trainer.fast_dev_run or self.trainer.interrupted:
            return
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "") or None
        progress = {"seconds": self.trainer_seconds(), "steps": self.trainer.global_step}
        if self.options["test_after_fit"]:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            write_report(self.root, self.model, progress)
        elif best is not None:
            self.model.load_state_dict(read_checkpoint(best)["state_dict"])
        if self.trainer.is_global_zero:
            save_reasoner(self.model.student.eval(), self.root / STUDENT)
            log.info("student: %s", self.root / STUDENT)
            log.info("TensorBoard: tensorboard --logdir %s", self.root)

    def trainer_seconds(self) -> float:
        """Seconds of training, from the throughput callback."""
        for callback in self.trainer.callbacks:
            if isinstance(callback, Throughput):
                return round(callback.seconds, 1)
        return 0.0

    def after_test(self) -> None:
        """Shows the table and writes the summary."""
        write_report(self.root, self.model, {})


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a parser's error into one line."""
    try:
        yield
    except ArgumentError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LoriError):
                raise cause from None
            cause = cause.__cause__
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
        noise = (
            "Does not validate against any",
            "Subtypes:",
            "Errors:",
            "Given value",
            "Expected a <class 'NoneType'>",
        )
        useful = [line for line in lines if not line.startswith(noise)]
        raise LoriError(" ".join(useful or lines)[:600] + "; see --help of the command") from None


def parse(arguments: list[str], run: bool) -> LoriCLI:
    """Parses a command line; with ``run`` its sub-command is carried out."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    sys.argv = sys.argv[:1]  # LightningCLI warns where both are given
    with one_line_errors():
        return LoriCLI(
            Method,
            PairedDataModule,
            subclass_mode_model=True,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults={"max_epochs": -1, "log_every_n_steps": 20},
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False} if not run else _for_all_commands(),
            args=arguments,
            run=run,
        )


def _for_all_commands() -> dict[str, Any]:
    keywords = {"parser_mode": "omegaconf+", "exit_on_error": False}
    return {**keywords, **{name: dict(keywords) for name in LightningCLI.subcommands()}}


def run(arguments: list[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``."""
    parse(arguments, run=True)
    return 0
