"""lori_pl: implicit chain-of-thought distillation on PyTorch Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lori_pl.models.reasoner import Answer, LatentReasoner

__all__ = ["Answer", "LatentReasoner", "__version__"]


def __getattr__(name: str) -> Any:
    # imported late, so that `import lori_pl` stays light
    if name in ("LatentReasoner", "Answer"):
        from lori_pl.models import reasoner

        return getattr(reasoner, name)
    raise AttributeError(f"module 'lori_pl' has no attribute '{name}'")
