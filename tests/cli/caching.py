"""Builds caches of the tiny world."""

from __future__ import annotations

from tiny_world import BACKBONE

OTHER = {**BACKBONE, "config": {**BACKBONE["config"], "hidden_size": 24, "num_hidden_layers": 3}}
LEARNED = {
    "backbone": OTHER,
    "student_init": "base",
    "alignment": {
        "class_path": "lori_pl.alignment.LowRankAlignment",
        "init_args": {"rank_hidden": 4, "student_factors": "learned"},
    },
    "anchor": {"class_path": "lori_pl.alignment.AnchorAlignment", "init_args": {"anchor_space": "low_rank"}},
}


def build(world, arguments, *flags, folder="cache", dtype="float32") -> int:
    """Of the 64 problems, four shards."""
    where = ["--folder", str(world.folder / folder), "--dtype", dtype, "--shard_problems", "18"]
    return world.run("cache", *where, *flags, method="LoRi", **arguments)


def cached(world, arguments, folder="cache"):
    return arguments | {"cache": str(world.folder / folder)}


def files(world, folder="cache"):
    return sorted(path.name for path in (world.folder / folder).glob("shard-*"))
