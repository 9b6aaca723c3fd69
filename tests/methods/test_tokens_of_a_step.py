"""The tokens a second that a training logs are those of all that the student's passes read."""

from __future__ import annotations

from types import SimpleNamespace

from plain import batch_of
from test_every_method import build

from lori_pl.callbacks.throughput import Throughput
from lori_pl.methods import CODI, Coconut, ExplicitCoT, ICoTSI, LoRi, NoCoT, PCCoT


def tokens_of(kind, stage=None, **changes):
    """Of a step on four problems; and the batch."""
    method = build(kind, stage, **changes)
    batch = batch_of(method, [0, 1, 2, 3], pieces=True)
    throughput, trainer = Throughput(), SimpleNamespace(global_step=1, log_every_n_steps=2)
    method.losses(batch)  # outside a step
    throughput.on_train_batch_start(trainer, method, batch, 0)
    method.losses(batch)
    throughput.on_train_batch_end(trainer, method, None, batch, 0)
    return throughput.state_dict()["tokens"], batch


def test_words_are_read_whole():
    tokens, batch = tokens_of(ExplicitCoT)
    assert tokens == batch.explicit.ids.numel()


def test_what_a_stage_has_taken_away_is_not_read():
    whole, first, second, last = (tokens_of(ICoTSI, stage)[0] for stage in (0, 1, 2, None))
    assert whole == tokens_of(ExplicitCoT)[0]
    assert whole - first == first - second == 4
    assert last == tokens_of(NoCoT)[0]


def test_a_step_that_gives_way_to_a_latent_is_not_read():
    tokens = [tokens_of(Coconut, stage)[0] for stage in (0, 1, None)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] == tokens_of(LoRi)[0]  # as many latents
    assert tokens[0] - tokens[1] == tokens_of(ExplicitCoT)[0] - tokens_of(ICoTSI, 6)[0]  # a step of seven, a latent


def test_latents_are_read_once_a_pass():
    assert tokens_of(LoRi, latents=5)[0] - tokens_of(LoRi, latents=3)[0] == 4 * 2
    assert tokens_of(PCCoT, passes=3)[0] - tokens_of(PCCoT, passes=2)[0] == 4 * 4


def test_its_own_teacher_reads_what_stands_behind_the_question():
    tokens, batch = tokens_of(CODI)
    behind = batch.explicit.ids.shape[1] - batch.question.shape[1]
    assert tokens - tokens_of(LoRi)[0] == 4 * behind
