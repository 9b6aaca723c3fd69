"""What sharding strategies share: checkpoints that are single files, read by every process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ParallelStrategy

from lori_pl.checkpoint_files import read_checkpoint
from lori_pl.models.backbone import hollow_stays


def backend_for(backend: str | None, cpu_offload: bool) -> str | None:
    """The process group's backend.

    Args:
        backend: The one that is asked for.
        cpu_offload: Whether parts lie in the host's memory: what is offloaded is reduced where it lies.
    """
    return backend or ("cpu:gloo,cuda:nccl" if cpu_offload else None)


class SingleFiles(ParallelStrategy):
    """A strategy whose checkpoints are whole tensors in one file, so that a run may go on under another strategy."""

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint; what is not used stays in the file.

        Raises:
            LoriError: If it cannot be read.
        """
        return read_checkpoint(self.broadcast(checkpoint_path), mmap=True)

    def load_state(self, state: Mapping[str, Any], strict: bool) -> None:
        """Loads weights; before they are sharded it is the first process's that count, and the others have none.

        Args:
            state: By name.
            strict: Whether all have to be there.
        """
        assert self.lightning_module is not None
        with hollow_stays():
            self.lightning_module.load_state_dict(state, strict=strict)
