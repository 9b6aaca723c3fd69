"""Runs on a GPU: the CPU's, and under every strategy, with NCCL and offloading; low precision and compiled layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_world import checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIGS = Path(__file__).parents[2] / "configs"


def fit(folder: Path, name: str, *flags: str, devices: int = 1) -> dict[str, torch.Tensor]:
    """LoRi on the embedded teacher, three steps; gives what trained."""
    base = {
        "trainer": {"max_steps": 3, "val_check_interval": 3, "enable_progress_bar": False, "gradient_clip_val": 1.0},
        "data": {
            "batch_size": 8,
            "source": {
                "class_path": "lori_pl.data.sources.Synthetic",
                "init_args": {"train": 64, "validation": 16, "test": 16, "min_steps": 4, "max_steps": 5},
            },
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    embedded = [f"experiment/embedded/{name}" for name in ("from_teacher", "shipped_teacher", "with_teacher", "lori")]
    given = [f"--config={CONFIGS / f'{config}.yaml'}" for config in ("data/synthetic", "method/lori", *embedded)]
    run = ["fit", *given, f"--config={folder / 'base.yaml'}"]
    run += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1", "--model.statistics_problems=32"]
    run += [f"--trainer.devices={devices}", f"--trainer.default_root_dir={folder / name}", *flags]
    done = subprocess.run([sys.executable, "-m", "lori_pl", *run], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / name / "summary.json").read_text())["methods"]
    return checkpoint(folder / name)["state_dict"]


SHARDED, FSDP1 = "lori_pl.sharding.ShardedStrategy", "lori_pl.sharding.FSDP1Strategy"
STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp"],
    "sharded": ["--trainer.strategy=sharded"],
    "sharded, offloaded": [f"--trainer.strategy={SHARDED}", "--trainer.strategy.cpu_offload=true"],
    "fsdp1": ["--trainer.strategy=fsdp1"],
    "fsdp1, offloaded": [f"--trainer.strategy={FSDP1}", "--trainer.strategy.cpu_offload=true"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What trains on the GPU without a strategy."""
    return fit(tmp_path_factory.mktemp("alone"), "run", "--trainer.accelerator=gpu", "--trainer.strategy=auto")


def test_a_run_is_the_cpus(alone, tmp_path):
    assert_close(fit(tmp_path, "run", "--trainer.accelerator=cpu"), alone, 1e-3)


def analysed(folder: Path, device: str) -> dict:
    """What ``analyze`` finds of a run's student."""
    out, run = folder / device, folder / "run"
    given = [f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'student'}", f"--folder={out}"]
    line = [sys.executable, "-m", "lori_pl", "analyze", *given, "--problems=16", f"--device={device}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "analysis.json").read_text())


def assert_same_analysis(one: dict, other: dict) -> None:
    assert one["rank"]["states"].keys() == other["rank"]["states"].keys()
    for name, states in one["rank"]["states"].items():
        shares = [each["rank"]["states"][name]["modes"]["hidden"]["energy_shares"] for each in (one, other)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-3), (name, states["tokens"])
    kinds = [[(each["intervention"], each["latent"]) for each in a["latents"]["interventions"]] for a in (one, other)]
    assert kinds[0] == kinds[1]


def test_an_analysis_is_the_cpus(tmp_path):
    fit(tmp_path, "run", "--trainer.accelerator=cpu")
    assert_same_analysis(*(analysed(tmp_path, device) for device in ("cpu", "cuda")))


@pytest.mark.distributed
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_over_nccl_is_one_gpu(alone, tmp_path, name):
    """On two GPUs where there are two: on one, FSDP1 does not divide anything."""
    devices = min(2, torch.cuda.device_count())
    flags = ["--trainer.accelerator=gpu", f"--data.batch_size={8 // devices}", *STRATEGIES[name]]
    assert_close(fit(tmp_path, "run", *flags, devices=devices), alone, 1e-4)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = float(value.float().abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(
            found[key].cpu(), value.cpu(), atol=tolerance * max(scale, 1e-3), rtol=tolerance, msg=key
        )


@pytest.mark.parametrize("strategy", ["auto", "sharded", "fsdp1"])
def test_a_run_in_bfloat16(tmp_path, strategy):
    flags = ["--trainer.accelerator=gpu", "--trainer.precision=bf16-mixed", f"--trainer.strategy={strategy}"]
    weights = fit(tmp_path, "run", *flags)
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


def test_a_compiled_run_is_the_plain_one(alone, tmp_path):
    flags = ["--trainer.accelerator=gpu", "--model.backbone.compile=true"]
    assert_close(fit(tmp_path, "run", *flags), alone, 1e-3)
