import pytest
import torch
import torch.distributed as distributed
from hypothesis import given, settings
from hypothesis import strategies as st

from lori_pl.errors import LoriError
from lori_pl.evaluation.metrics import AnswerAccuracy, MeanByProblem, TestSetMetrics


def _plain(result):
    return {name: value.item() for name, value in result.items()}


def test_accuracy_overall_and_by_number_of_steps():
    metric = AnswerAccuracy()
    metric.update(torch.tensor([True, False]), torch.tensor([3, 3]), torch.tensor([0, 1]))
    metric.update(torch.tensor([True, True, False]), torch.tensor([3, 5, 0]), torch.tensor([2, 3, 4]))
    assert _plain(metric.compute()) == pytest.approx(
        {"accuracy": 3 / 5, "n": 5, "accuracy_steps_0": 0, "accuracy_steps_3": 2 / 3, "accuracy_steps_5": 1}
    )
    metric.reset()
    metric.update(torch.tensor([True]), torch.tensor([2]), torch.tensor([0]))
    assert _plain(metric.compute()) == {"accuracy": 1, "n": 1, "accuracy_steps_2": 1}


problems = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=30)


@given(problems=problems, repeats=st.lists(st.integers(0, 29), max_size=10), ranks=st.integers(1, 4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_problems_spread_and_repeated_over_ranks_count_once(problems, repeats, ranks, data):
    """What every rank computes after gathering equals one process that sees each problem once."""
    correct, steps = map(torch.tensor, zip(*problems, strict=True))
    index = torch.arange(len(problems))
    single = AnswerAccuracy()
    single.update(correct, steps, index)

    order = data.draw(st.permutations([*range(len(problems)), *(r % len(problems) for r in repeats)]))
    order += order[: -len(order) % ranks]  # as a distributed sampler evens out the ranks
    order = torch.tensor(order * (1 if len(order) >= ranks else ranks))
    states = {
        name: [part[order[rank::ranks]] for rank in range(ranks)]
        for name, part in {"correct": correct, "steps": steps, "index": index}.items()
    }
    metric = AnswerAccuracy(
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda tensor, group: next(
            parts for parts in states.values() if any(tensor is part for part in parts)
        ),
    )
    for rank in range(ranks):
        metric.reset()
        metric.correct, metric.steps, metric.index = ([states[n][rank]] for n in ("correct", "steps", "index"))
        metric._update_count = 1
        assert _plain(metric.compute()) == _plain(single.compute())


def test_states_are_gathered_by_a_real_process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        metric = AnswerAccuracy(distributed_available_fn=lambda: True)
        metric.update(torch.tensor([True, False]), torch.tensor([1, 2]), torch.tensor([7, 9]))
        mean = MeanByProblem(distributed_available_fn=lambda: True)
        mean.update(torch.tensor([6, 8]), torch.tensor([7, 9]))
        assert _plain(metric.compute()) == {"accuracy": 0.5, "n": 2, "accuracy_steps_1": 1, "accuracy_steps_2": 0}
        assert mean.compute() == 7
    finally:
        distributed.destroy_process_group()


def test_the_outcomes_of_all_processes_stand_in_the_order_of_the_data_set(monkeypatch):
    """The first process alone writes them: without the others' it wrote a half."""
    metrics = TestSetMetrics()
    metrics.rows = {0: ("a", True), 2: ("c", False), 4: ("e", True)}
    others = {1: ("b", False), 3: ("d", True), 0: ("a", True)}  # one is repeated to even out the processes

    def gather(parts, own):
        parts[:] = [own, others]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    metrics.gather_rows()
    assert list(metrics.outcomes.items()) == [("a", True), ("b", False), ("c", False), ("d", True), ("e", True)]


def test_mean_counts_a_repeated_problem_once():
    metric = MeanByProblem()
    metric.update(torch.tensor([6.0, 9.0]), torch.tensor([0, 1]))
    metric.update(torch.tensor([9.0, 9.0]), torch.tensor([1, 1]))
    assert metric.compute() == 7.5


def test_no_problem_and_unequal_shapes_are_refused():
    with pytest.warns(UserWarning, match="compute"), pytest.raises(LoriError, match="Accuracy: no problem was evalua"):
        AnswerAccuracy().compute()
    with pytest.raises(LoriError, match=r"'steps' has shape \(1,\) and 'index' \(2,\)"):
        AnswerAccuracy().update(torch.ones(2, dtype=torch.bool), torch.ones(1), torch.arange(2))
    with pytest.raises(LoriError, match=r"MeanByProblem: 'value' has shape \(\) and 'index' \(\)"):
        MeanByProblem().update(torch.tensor(1.0), torch.tensor(1))
