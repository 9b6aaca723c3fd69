"""No-CoT: question, answer prompt, answer."""

from __future__ import annotations

from lori_pl.methods.base import Method


class NoCoT(Method):
    """Answers at once: question, answer prompt, answer; cross-entropy on the answer. The floor of every comparison."""

    name = "no_cot"
    reasoning = "none"
