"""A tiny world: what its configs say, runs through the real command line in process, and their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from lori_pl.cli import main

BACKBONE = {
    "tokenizer": "synthetic",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
}
SOURCE = {
    "class_path": "lori_pl.data.sources.Synthetic",
    "init_args": {"train": 64, "validation": 16, "test": 16, "min_steps": 1, "max_steps": 2, "limit": 20},
}
BASE: dict[str, Any] = {
    "trainer": {
        "max_steps": 4,
        "val_check_interval": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    },
    "data": {"batch_size": 8, "eval_batch_size": 16, "source": SOURCE},
}
LORI_TERMS: dict[str, Any] = {
    "alignment": {"class_path": "lori_pl.alignment.LowRankAlignment", "init_args": {"rank_hidden": 4}},
    "anchor": {"class_path": "lori_pl.alignment.AnchorAlignment"},
    "latents": 3,
    "statistics_problems": 16,
}


def checkpoint(folder: Path, name: str = "last.ckpt") -> dict:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


class World:
    """Writes configs and runs the command line in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, name: str, content: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    def method(self, name: str, **init_args: Any) -> str:
        # an untrained model knows no end
        init_args = {"max_new_tokens": 4, **init_args}
        return self.config(name, {"model": {"class_path": f"lori_pl.methods.{name}", "init_args": init_args}})

    def run(self, command: str, *flags: str, method: str, root: str | None = None, **init_args: Any) -> int:
        arguments = [command, "--config", self.config("base", BASE), "--config", self.method(method, **init_args)]
        if root is not None:
            arguments += ["--trainer.default_root_dir", str(self.folder / root)]
        return main([*arguments, *flags])

    def fit(self, method: str, root: str, *flags: str, **init_args: Any) -> int:
        return self.run("fit", *flags, method=method, root=root, **init_args)
