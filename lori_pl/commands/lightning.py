"""LightningCLI with the links, guards and reports of lori_pl."""

from __future__ import annotations

import json
import logging
import os
import time
from argparse import SUPPRESS
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lori_pl.callbacks.finite_loss import FiniteLoss
from lori_pl.callbacks.predictions import PredictionWriter
from lori_pl.callbacks.stop_signals import Stopped, StopSignals
from lori_pl.callbacks.throughput import Throughput
from lori_pl.callbacks.training_cost import TrainingCost
from lori_pl.checkpoint_files import checkpoints_in, read_checkpoint
from lori_pl.commands.failures import explained
from lori_pl.commands.links import fields, method_class, reader
from lori_pl.commands.nulls import check_nulls, nulls_in_mappings
from lori_pl.commands.parser_errors import NO_METHOD, one_line_errors, trainer_errors
from lori_pl.commands.processes import check_world, ending_together
from lori_pl.commands.run_folder import check_folder, checkpoints_seen, held, resolve_checkpoint
from lori_pl.commands.run_parts import add_parts, logger_of, training_callbacks
from lori_pl.data.datamodule import NO_SOURCE, PairedDataModule
from lori_pl.errors import LoriError
from lori_pl.evaluation.report import write_report
from lori_pl.files import replace_folder
from lori_pl.methods import Method
from lori_pl.methods.optimization import check_precision
from lori_pl.models.saving import read_settings, save_reasoner
from lori_pl.run_files import CHECKPOINTS, CONFIG, STUDENT, SUMMARY
from lori_pl.sharding import refuse_own_fsdp, shards

log = logging.getLogger(__name__)

HERE = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
"""Options for commands that do not train: the devices of a config may not be here."""
_STARTED = "LORI_PL_STARTED"
_CKPT_PATH = {
    "fit": "A checkpoint to go on from, or which of this run's own: `last` (the newest sound one), `auto` (the same, "
    "or a start where there is none) or `best`.",
    "validate": "A checkpoint of a run, or a student's folder.",
}
"""Help of ``ckpt_path`` by sub-command; those that are not there have that of ``validate``."""


class LoriCLI(LightningCLI):
    """LightningCLI whose runs have a folder of their own, and whose flags win also on resume."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data must agree on, and adds the options of a run."""
        # one link: for each, jsonargparse checks the whole model again
        parser.link_arguments("model", "data.reader", compute_fn=reader)
        parser.link_arguments("data.template", "model.init_args.template")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best checkpoint after fit.")
        parser.add_argument(
            "--predictions", type=str, default="predictions.jsonl", help="Where `predict` writes; must not exist."
        )
        parser.add_argument(
            "--latents",
            type=int | None,
            default=None,
            help="Number of latents in validate, test and predict; null for that of the training.",
        )
        for name in ("optimizer", "lr_scheduler"):  # null in the config.yaml of a run of an earlier version
            parser.add_argument(f"--{name}", type=type(None), default=None, help=SUPPRESS)
        parser.add_lightning_class_args(FiniteLoss, "non_finite")
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Tells what ``ckpt_path`` takes here: Lightning's help names what is refused, and not all that is taken."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = _CKPT_PATH.get(subcommand, _CKPT_PATH["validate"])
        return parser

    def _dump_config(self) -> None:
        """As in LightningCLI, whose modules have it as hyper-parameters, without checking anew what was parsed."""
        if not hasattr(self, "config_dump"):
            options = self.parser.dump(
                self.config, skip_link_targets=False, skip_none=False, skip_validation=True, format="yaml"
            )
            dumped = yaml.safe_load(options)
            self.config_dump = dumped[self.subcommand]

    def _set_seed(self) -> None:
        """Seeds the process, once the seed is known to be one that data and summary can have, too."""
        self._check_seed()
        super()._set_seed()

    def _check_seed(self) -> None:
        seed = self.options.get("seed_everything")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise LoriError(f"seed_everything is {json.dumps(seed)}: give a number from 0 to 2^32 - 1")

    def _parse_ckpt_path(self) -> None:
        """Leaves the config alone: LightningCLI would put the checkpoint's hyper-parameters over the flags."""

    @property
    def options(self) -> Any:
        """The parsed options of the running sub-command."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Checks what can be checked before anything is loaded, and gives the run its folder."""
        options = self.options
        self.check_options()
        trainer = options["trainer"]
        if trainer.get("default_root_dir") is None:
            # the processes that the launcher starts have the first one's
            started = os.environ.get(_STARTED) if int(os.environ.get("LOCAL_RANK", "0")) else None
            os.environ[_STARTED] = started = started or time.strftime("%Y%m%d-%H%M%S")
            trainer["default_root_dir"] = f"runs/{self.subcommand}-{started}"
        self.root = Path(str(trainer["default_root_dir"]))
        interval = trainer.get("val_check_interval")
        if isinstance(interval, int) and not isinstance(interval, bool):
            # every so many batches, whatever an epoch has; Lightning would refuse more than those of one
            trainer["check_val_every_n_epoch"] = None
        if self.subcommand == "test":
            options["verbose"] = False  # ours is the table
            if (self.root / CONFIG).exists():  # the folder of the run that is tested
                self.root = self.root / "test"
                trainer["default_root_dir"] = str(self.root)
        if self.subcommand == "predict" and Path(options["predictions"]).exists():
            raise LoriError(f"{options['predictions']} exists already; give another --predictions file")
        wanted = options.get("ckpt_path")
        self.seen = checkpoints_seen(self.root)
        name = method_class(options["model"]).name
        self.folder = resolve_checkpoint(self.subcommand, options, self.root, name)
        if self.folder is None:
            self.check_model()
        else:  # it brings all that a test needs
            self._take_template(self.folder)
            options["data"]["reader"] |= {"tokenizer": self.folder, "revision": None, "teacher_tokenizer": None}
        self._check_folder(options, wanted)

    def check_options(self) -> None:
        """Checks what options say by themselves.

        Raises:
            LoriError: If there is no method or no data, null where there is none, or two do not go together.
        """
        options, trains = self.options, self.subcommand == "fit"
        if not (options.get("model") or {}).get("class_path"):
            raise LoriError(NO_METHOD)
        check_nulls(options["data"], "data", PairedDataModule)  # first: the model has its template, too
        check_nulls(options["model"], "model")
        if self.subcommand in ("fit", "validate") and options["data"].get("source") is None:
            raise LoriError(NO_SOURCE)
        if trains and options.get("latents") is not None:
            raise LoriError("--latents is for validate, test and predict; a training takes --model.latents")
        interval = options["trainer"].get("val_check_interval")
        accumulated = int(options["trainer"].get("accumulate_grad_batches") or 1)
        if trains and isinstance(interval, int) and not isinstance(interval, bool) and interval % accumulated:
            # its checkpoint would lose the gradients that are there
            raise LoriError(
                f"trainer.val_check_interval is {interval} batches, in the middle of a step of "
                f"{accumulated} (trainer.accumulate_grad_batches): give a multiple of that"
            )

    def check_model(self) -> None:
        """Checks what is said of a model that is not a student's folder.

        Raises:
            LoriError: If the method's arguments do not fit together, or nothing names a tokenizer.
        """
        method_class(self.options["model"]).check(fields(self.options["model"]))
        if not self.options["data"]["reader"]["tokenizer"]:
            raise LoriError(
                "model.backbone has neither name nor tokenizer: set --model.backbone.name or --model.backbone.tokenizer"
            )

    def _take_template(self, folder: str) -> None:
        """Takes a student's own template where the config gives none, so that any data set may be answered."""
        options = self.options
        if options["data"].get("template") is None:
            own = Namespace(**asdict(read_settings(Path(folder))["template"]))
            options["data"]["template"] = own
            if "template" in options["model"]["init_args"]:  # a method may have none
                options["model"]["init_args"]["template"] = own

    def _check_folder(self, options: Any, wanted: str | None) -> None:
        checkpoint = options.get("ckpt_path") if self.subcommand == "fit" else None
        # a checkpoint of another run is no leave to write over this one
        resumes = checkpoint is not None and self.root.resolve() in Path(checkpoint).resolve().parents
        if self.subcommand in ("fit", "test") and not options["trainer"].get("fast_dev_run") and not resumes:
            check_folder(self.subcommand, wanted, self.root)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the callbacks and the logger that a run has unless its config says otherwise."""
        trainer = self.config_init[self.subcommand]["trainer"]
        trains = self.subcommand == "fit"
        kwargs["logger"] = logger_of(trainer, self.root, trains)
        callbacks: list[pl.Callback] = [PredictionWriter(Path(self.options.get("predictions") or ""))]
        if trains and not trainer.get("fast_dev_run"):
            options = self.options.clone()
            options["ckpt_path"] = None  # the file repeats the run, also one that was resumed
            config = self._parser(self.subcommand).dump(options, skip_none=False)
            callbacks += training_callbacks(trainer, self.root, config, self.options.get("ckpt_path"))
        add_parts(trainer, callbacks)
        refuse_own_fsdp(trainer.get("strategy"))
        with trainer_errors(trainer):
            made = super().instantiate_trainer(**kwargs)
        if isinstance(made.strategy.launcher, _MultiProcessingLauncher):
            raise LoriError(
                f"trainer.strategy {trainer.get('strategy')} trains in processes whose model is gone when they end; "
                "use ddp"
            )
        check_world(made)
        return made

    def after_instantiate_classes(self) -> None:
        """Hands a student's folder, and the number of latents of this run, to the method."""
        self.model.folder = self.folder
        self.model.latents_at_run = self.options.get("latents")
        self.model.trains = self.subcommand == "fit"
        self.datamodule.tests_after_fit = self.options.get("test_after_fit", True)
        if self.trainer is not None:
            check_precision(self.trainer.precision)
            if self.model.trains:
                self.model.check_run(self.datamodule, self.trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; a training holds its folder, and takes the processes that it started with it when it fails."""
        trains = subcommand == "fit" and not self.trainer.fast_dev_run and self.trainer.is_global_zero
        folder = self.root / CHECKPOINTS
        explains = explained(lambda: subcommand == "fit" and bool(checkpoints_in(folder)))
        listener = next((callback for callback in self.trainer.callbacks if isinstance(callback, StopSignals)), None)
        listens = listener.listening(self.trainer) if listener is not None else nullcontext()
        holds = held(self.root, self.seen) if trains else nullcontext()
        with ending_together(self.trainer), explains, holds, listens:
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Exports the student of the best checkpoint, tests it and shows the table."""
        if self.trainer.fast_dev_run or self.trainer.interrupted:
            return
        kept = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        checkpoint = kept[0] if kept else None
        best = getattr(checkpoint, "best_model_path", "") or None
        seed = int(self.options["seed_everything"])
        progress = {
            "seed": seed,
            "steps": self.trainer.global_step,
            **self.cost(),
        }
        score = getattr(checkpoint, "best_model_score", None)
        if score is not None:
            progress["validation"] = round(float(score), 6)
        method = self.trained_method(best)
        if self.trainer.is_global_zero:
            student = method.student.eval()
            (self.root / SUMMARY).unlink(missing_ok=True)  # that of the run that this one goes on with
            # a resumed run replaces its earlier student
            replace_folder(self.root / STUDENT, lambda part: save_reasoner(student, part, seed=seed))
            log.info("student: %s", self.root / STUDENT)
            log.info("TensorBoard: tensorboard --logdir %s", self.root)
        if self.options["test_after_fit"]:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            write_report(self.root, self.model, progress)

    def trained_method(self, best: str | None) -> Method:
        """The method with the weights of the best checkpoint, or as it is; the first process has all of them."""
        model: Method = self.model
        if not shards(self.trainer.strategy):
            if best is not None:
                saved = read_checkpoint(best, checked=True)
                model.on_load_checkpoint(saved)
                model.load_state_dict(saved["state_dict"])
            return model
        # every process has a part: the first loads the model once more, on the CPU
        state = self.trainer.strategy.lightning_module_state_dict() if best is None else {}
        if self.trainer.is_global_zero:
            model = load_trained([f"--config={self.root / CONFIG}"], best or state)
        self.trainer.strategy.barrier()
        return model

    def cost(self) -> dict[str, Any]:
        """Seconds, problems and arithmetic of the training, from the callbacks that count them."""
        found: dict[str, Any] = {}
        for callback in self.trainer.callbacks:
            if isinstance(callback, Throughput):
                found["training_seconds"] = round(callback.seconds, 1)
                found["problems_seen"] = callback.problems * self.trainer.world_size
            if isinstance(callback, TrainingCost):
                found |= callback.figures(self.trainer.world_size)
        return found

    def after_test(self) -> None:
        """Shows the table and writes the summary, with the seed of the training where that is known."""
        trained = self.model.trained_seed if self.folder is None else read_settings(Path(self.folder)).get("seed")
        seed = self.options["seed_everything"] if trained is None else trained
        write_report(self.root, self.model, {"seed": int(seed)})


class ParsedCLI(LoriCLI):
    """Parses a command line and makes model and data, but no Trainer, and runs nothing."""

    def _check_folder(self, options: Any, wanted: str | None) -> None:
        """Nothing is written there."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Makes none."""
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


class OptionsCLI(ParsedCLI):
    """Parses a command line and makes nothing."""

    def _set_seed(self) -> None:
        """Checks the seed and seeds nothing."""
        self._check_seed()

    def before_instantiate_classes(self) -> None:
        """Checks the options, and in a training the model that they describe.

        Raises:
            LoriError: As `check_options` and `check_model`.
        """
        self.check_options()
        if self.subcommand == "fit":
            self.check_model()

    def instantiate_classes(self) -> None:
        """Makes none."""

    def after_instantiate_classes(self) -> None:
        """There is nothing to check."""


class PlainTrainerCLI(ParsedCLI):
    """Makes a Trainer too, without the callbacks and the logger of a training; runs nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Makes it of the devices, strategy and precision that the config gives."""
        trainer = self.config_init[self.subcommand]["trainer"]
        plain = {"callbacks": None, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        for name, value in plain.items():
            trainer[name] = value
        with trainer_errors(trainer):
            return LightningCLI.instantiate_trainer(self, **kwargs)

    def after_instantiate_classes(self) -> None:
        """Checks nothing: no training follows."""


def parse(arguments: list[str], kind: type[LoriCLI] = ParsedCLI) -> LoriCLI:
    """Parses a command line.

    Args:
        arguments: A sub-command and its options.
        kind: `LoriCLI` carries it out, `ParsedCLI` only makes model and data.
    """
    logging.getLogger("lightning").handlers.clear()  # the root's prints the same lines
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    keywords = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
    commands = LightningCLI.subcommands()
    if arguments[0] in commands:  # a parser of the whole Trainer, model and data is made for each
        commands = {arguments[0]: commands[arguments[0]]}
        kind = type(kind.__name__, (kind,), {"subcommands": staticmethod(lambda: commands)})
    with one_line_errors(arguments):
        return kind(
            Method,
            PairedDataModule,
            subclass_mode_model=True,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,  # a method has its own
            trainer_defaults={"max_epochs": -1, "log_every_n_steps": 20},
            parser_kwargs={
                "prog": "python -m lori_pl",
                **keywords,
                **{name: dict(keywords) for name in commands},
            },
            args=nulls_in_mappings(arguments),
        )


def load_trained(arguments: list[str], checkpoint: str | dict[str, Any]) -> Method:
    """Loads a method from a checkpoint, as the options of its run describe it; it is not to be trained.

    Args:
        arguments: What ``fit`` was given.
        checkpoint: The checkpoint's file, or the weights that it would hold.

    Raises:
        LoriError: If the checkpoint is damaged, or of another method or model.
    """
    model: Method = parse(["fit", *arguments]).model
    model.trains = False
    if isinstance(checkpoint, str):
        saved = read_checkpoint(checkpoint, checked=True)
        model.on_load_checkpoint(saved)
        checkpoint = saved["state_dict"]
    model.configure_model()
    model.load_state_dict(checkpoint)
    return model


def run(arguments: list[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``.

    Returns:
        Exit status: 0, or 128 and the signal's number where one stopped a training, which then has a checkpoint.
    """
    try:
        parse(arguments, LoriCLI)
    except Stopped as stop:
        log.info("%s", stop)
        return stop.status
    return 0
