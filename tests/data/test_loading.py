"""Training order: every row once an epoch, like lengths together, the same under workers, processes and resume."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer

from lori_pl.data import datamodule
from lori_pl.data.datamodule import PairedDataModule, Reader
from lori_pl.data.loading import epoch_batches
from lori_pl.data.sources import Synthetic
from lori_pl.data.template import Template
from lori_pl.data.tokenizer import synthetic_tokenizer
from lori_pl.errors import LoriError


def trainer(**settings) -> SimpleNamespace:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), **settings)


def data(**options) -> PairedDataModule:
    module = PairedDataModule(Synthetic(train=100, validation=20, test=20), **{"batch_size": 8, **options})
    module.setup("fit")
    return module


def rows(loader, count=None) -> list[list[int]]:
    return [batch.index.tolist() for _, batch in zip(range(count or 10**6), loader, strict=False)]


def flat(loader) -> list[int]:
    return list(itertools.chain.from_iterable(rows(loader)))


def test_every_row_at_most_once_an_epoch_and_epochs_differ():
    lengths = np.arange(100) % 13
    first, second = (epoch_batches(100, 8, 0, epoch, lengths) for epoch in (0, 1))
    assert len(first) == 12
    flat = np.concatenate(first)
    assert len(set(flat.tolist())) == 96
    assert not np.array_equal(flat, np.concatenate(second))
    assert np.array_equal(flat, np.concatenate(epoch_batches(100, 8, 0, 0, lengths)))
    assert not np.array_equal(flat, np.concatenate(epoch_batches(100, 8, 1, 0, lengths)))


def test_like_lengths_meet():
    lengths = np.random.default_rng(0).integers(10, 100, 4096)
    spread = [np.ptp(lengths[batch]) for batch in epoch_batches(4096, 32, 0, 0, lengths)]
    loose = [np.ptp(lengths[batch]) for batch in epoch_batches(4096, 32, 0, 0)]
    assert np.mean(spread) < 0.1 * np.mean(loose)


def test_like_lengths_meet_at_random():
    lengths = np.arange(1024)  # without ties one sort of all rows would make the same batches every epoch
    first, second = (epoch_batches(1024, 8, 0, epoch, lengths) for epoch in (0, 1))
    assert {frozenset(batch.tolist()) for batch in first} != {frozenset(batch.tolist()) for batch in second}
    ascents = sum(np.mean(a) < np.mean(b) for a, b in itertools.pairwise(first))
    assert 32 < ascents < 96  # about half of the 127 pairs of neighbours


def test_the_order_is_that_of_the_seed():
    assert rows(data(seed=1).train_dataloader()) != rows(data().train_dataloader())
    assert rows(data(seed=1).train_dataloader()) == rows(data(seed=1).train_dataloader())


def test_processes_share_each_global_batch():
    parts = []
    for rank in (0, 1):
        module = data(batch_size=4)
        module.trainer = trainer(world_size=2, global_rank=rank, current_epoch=0, accumulate_grad_batches=1)
        parts.append(rows(module.train_dataloader()))
    for batch, one, two in zip(rows(data().train_dataloader()), *parts, strict=True):
        assert len(one) == len(two) == 4
        assert sorted(batch) == sorted(one + two)


def test_workers_change_nothing():
    alone, helped = data().train_dataloader(), data(num_workers=2).train_dataloader()
    for _ in range(2):  # epochs
        for one, two in zip(alone, helped, strict=True):
            assert torch.equal(one.index, two.index)
            assert torch.equal(one.question, two.question)


@pytest.mark.parametrize("num_workers", [0, 2])  # workers are ahead of what was taken
def test_resumed_in_mid_epoch_gives_what_was_left(num_workers):
    loader = data().train_dataloader()
    everything = rows(loader)
    fresh = data(num_workers=num_workers).train_dataloader()
    taken = rows(fresh, 5)
    state = fresh.state_dict()
    resumed = data(num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert taken + rows(resumed) == everything
    assert rows(resumed) == rows(loader)  # and then the second epoch


def test_a_checkpoint_between_epochs_follows_the_trainers_epoch():
    module = data()
    loader = module.train_dataloader()
    rows(loader)
    second = rows(loader)
    late = data().train_dataloader()
    late.trainer = SimpleNamespace(current_epoch=1)
    assert rows(late) == second


def test_evaluation_covers_every_problem_in_batches_of_like_length():
    module = data(eval_batch_size=3)
    for loader, split in ((module.val_dataloader(), "validation"), (module.test_dataloader()[0], None)):
        prepared = module.tests["test"] if split is None else module.splits[split]
        lengths, found = prepared.student.questions.lengths, rows(loader)
        assert sorted(itertools.chain.from_iterable(found)) == list(range(20))
        assert [len(batch) for batch in found] == [3] * 6 + [2]
        shortest = [lengths[batch].min() for batch in found]
        by_length = sorted(range(7), key=lambda k: (shortest[k], lengths[found[k]].max()))
        # no batch has a question that is longer than one of the next
        assert all(lengths[found[a]].max() <= lengths[found[b]].min() for a, b in itertools.pairwise(by_length))
        # the first ones are not the shortest, so that a limit of batches takes all lengths
        assert by_length != list(range(7))
        assert rows(loader) == found


def test_the_order_of_evaluation_follows_the_seed():
    assert flat(data(eval_batch_size=3).val_dataloader()) == flat(data(eval_batch_size=3).val_dataloader())
    assert flat(data(eval_batch_size=3).val_dataloader()) != flat(data(eval_batch_size=3, seed=1).val_dataloader())


@pytest.mark.parametrize("name", ["train_problems", "val_problems", "test_problems"])
@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_below_one_is_refused(name, most):
    with pytest.raises(LoriError, match=f"data.{name} is {most}: give 1 or more, or null for all"):
        PairedDataModule(source=Synthetic(train=40), **{name: most})


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_under_several_processes_repeats_but_misses_none(world):
    module = data()
    seen = []
    for rank in range(world):
        module.trainer = trainer(world_size=world, global_rank=rank)
        part = flat(module.val_dataloader())
        assert len(part) == -(-20 // world)
        seen += part
    assert set(seen) == set(range(20))


def test_limits_names_and_counts():
    module = data(train_problems=40, val_problems=5, test_problems=3)
    whole = data()
    for count, limited, split in (
        (40, module.splits["train"], whole.splits["train"]),
        (5, module.splits["validation"], whole.splits["validation"]),
        (3, module.tests["test"], whole.tests["test"]),
    ):
        assert limited.problems == split.problems[:count]
        assert limited.name == split.name
    assert [whole.splits["train"].name, whole.splits["validation"].name] == ["train", "validation"]


def test_several_test_sets_by_name():
    module = data(
        test_sources={
            "short": Synthetic(test=4, min_steps=3, max_steps=3),
            "long": Synthetic(test=5, min_steps=7, max_steps=7),
        }
    )
    assert {name: len(split.problems) for name, split in module.tests.items()} == {"short": 4, "long": 5}
    assert [len(flat(loader)) for loader in module.test_dataloader()] == [4, 5]
    assert [{len(problem.steps) for problem in split.problems} for split in module.tests.values()] == [{3}, {7}]


def test_too_long_problems_are_counted_or_an_error():
    lengths = data().splits["train"].student.lengths()
    limit = int(np.median(lengths))
    module = data(max_length=limit)
    kept = module.splits["train"]
    assert kept.counts["too long"] == int((lengths > limit).sum()) > 0
    assert kept.student.lengths().max() <= limit
    # an answer is not known before it is given: in evaluation the question alone counts
    evaluated = module.splits["validation"]
    assert len(evaluated.problems) == 20
    assert evaluated.student.lengths().max() > limit
    with pytest.raises(LoriError, match="on_too_long to drop"):
        data(max_length=limit, on_too_long="error")


def test_what_stands_behind_the_last_problem_that_is_taken_does_not_count():
    limit, following = data().splits["train"].student.lengths()[:2].tolist()
    assert following > limit
    for policy in ("drop", "error"):
        assert data(max_length=limit, train_problems=1, on_too_long=policy).splits["train"].counts["too long"] == 0
    assert data(max_length=limit, train_problems=2).splits["train"].counts["too long"] > 0
    with pytest.raises(LoriError, match="on_too_long to drop"):
        data(max_length=limit, train_problems=2, on_too_long="error")


def test_a_limit_is_filled_where_most_problems_are_too_long():
    lengths = data().splits["train"].student.lengths()
    limit = int(np.quantile(lengths, 0.2))
    fitting = np.flatnonzero(lengths <= limit)
    module = data(max_length=limit, train_problems=10)
    assert [problem.id for problem in module.splits["train"].problems] == [
        data().splits["train"].problems[i].id for i in fitting[:10]
    ]


def test_statistics_take_the_first_problems_in_order_of_length():
    module = data()
    order = flat(module.statistics_dataloader(30))
    assert sorted(order) == list(range(30))
    lengths = module.splits["train"].student.lengths()[order]
    assert (np.diff(lengths) >= 0).all()


def test_statistics_take_each_problem_once_on_two_processes():
    module = data()
    seen = []
    for rank in range(2):
        module.trainer = trainer(world_size=2, global_rank=rank)
        seen += flat(module.statistics_dataloader(17))
    assert sorted(seen) == list(range(17))


def test_statistics_of_fewer_problems_than_processes_are_refused():
    """A process would measure another's problem again, which would then weigh twice."""
    module = data()
    module.trainer = trainer(world_size=3, global_rank=2)
    assert len(flat(module.statistics_dataloader(3))) == 1
    with pytest.raises(LoriError, match=r"statistics_problems is 2, of .* at least one for each of the 3 processes"):
        module.statistics_dataloader(2)


@pytest.mark.parametrize("chat", [False, True])
def test_the_teacher_reads_its_own_chat_template(chat, monkeypatch):
    tokenizers = {name: byte_tokenizer(chat=True, pad=True) for name in "ab"}
    tokenizers["b"].chat_template = "[teacher]{{ messages[0]['content'] }}"
    monkeypatch.setattr(datamodule, "load_tokenizer", lambda name, *_: tokenizers[name])
    module = data(reader=Reader("a", teacher_tokenizer="b", markers=False), template=Template(chat=chat))
    batch = next(iter(module.val_dataloader()))
    if not chat:  # then no tokenizer's template is read, and one encoding serves both
        assert batch.teacher is batch.explicit
        return
    question = module.splits["validation"].problems[int(batch.index[0])].question
    text = tokenizers["b"].decode(batch.teacher.ids[0])
    assert text.startswith(f"[teacher]{question}")
    assert tokenizers["a"].decode(batch.explicit.ids[0]).startswith(f"<s>[user]{question}")


def test_revisions_of_one_tokenizer_are_compared(monkeypatch):
    larger = synthetic_tokenizer()
    larger.add_tokens(["zebra"])
    revisions = {None: synthetic_tokenizer(), "old": synthetic_tokenizer(), "new": larger}
    monkeypatch.setattr(datamodule, "load_tokenizer", lambda name, markers, revision: revisions[revision])

    def of_teacher(revision):
        reader = Reader("t", teacher_tokenizer="t", teacher_revision=revision, markers=False)
        return PairedDataModule(Synthetic(), reader=reader).teacher_encoder

    assert of_teacher(None) is of_teacher("old") is None
    assert of_teacher("new").tokenizer is larger


def test_no_source_is_taken_unasked():
    """Only what is asked for has to be there."""
    with pytest.raises(LoriError, match=r"data\.source is not set: add --config configs/data"):
        PairedDataModule()
    module = PairedDataModule(test_sources={"own": Synthetic(test=3)})
    module.setup("test")
    assert len(module.tests["own"].problems) == 3
    for stage in ("fit", "validate"):
        with pytest.raises(LoriError, match=r"data\.source is not set"):
            module.setup(stage)


@pytest.mark.parametrize("option", ["batch_size", "eval_batch_size", "max_length"])
def test_options_below_one(option):
    with pytest.raises(LoriError, match=rf"data\.{option} is 0"):
        PairedDataModule(**{option: 0})


@pytest.mark.parametrize(("processes", "accumulated"), [(1, 2), (2, 2), (2, 4), (1, 8)])
def test_a_step_has_the_same_problems_however_it_is_divided(processes, accumulated):
    parts = []
    for rank in range(processes):
        module = data(batch_size=8 // accumulated // processes or 1)
        module.trainer = trainer(
            world_size=processes, global_rank=rank, current_epoch=0, accumulate_grad_batches=accumulated
        )
        parts.append(rows(module.train_dataloader()))
    size = len(parts[0][0]) * processes * accumulated
    whole = rows(data(batch_size=size).train_dataloader())
    assert len(parts[0]) == len(whole) * accumulated
    for step, batch in enumerate(whole):
        taken = [row for part in parts for one in part[step * accumulated : (step + 1) * accumulated] for row in one]
        assert sorted(taken) == sorted(batch)
