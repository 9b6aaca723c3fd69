"""Generation: cached equals one full pass, passes counted, sampling reproducible, limits kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import QUESTIONS, encode, tiny_reasoner

from lori_pl.errors import LoriError
from lori_pl.models import generation as generation_module
from lori_pl.models.generation import choose


def full_pass(reasoner, question, generated, latents):
    """Last hidden states of one uncached pass over question, latents, suffix and generated tokens, in one row."""

    def run(inputs):
        ones = torch.ones(inputs.shape[:2], dtype=torch.bool)
        return reasoner.run(inputs, ones, torch.arange(inputs.shape[1])[None], None)

    inputs = reasoner.embed(question)
    if reasoner.reasoning == "latent":
        for _ in range(latents):
            z = reasoner.thought.projector(run(inputs)[:, -1:])
            inputs = torch.cat([inputs, z], 1)
    elif reasoner.reasoning == "parallel":
        thought = reasoner.thought
        first = thought.projector(run(inputs)[:, -1:])
        block = torch.cat([first, thought.placeholder.expand(1, latents - 1, -1)], 1)
        for _ in range(thought.passes - 1):
            hidden = run(torch.cat([inputs, block], 1))[:, -latents:]
            block = torch.cat([first, thought.projector(hidden[:, :-1])], 1)
        inputs = torch.cat([inputs, block], 1)
    elif reasoner.reasoning == "pause":
        inputs = torch.cat([inputs, reasoner.thought.fillers[None, :latents]], 1)
    suffix = [] if reasoner.reasoning == "words" else reasoner.encoder.suffix
    inputs = torch.cat([inputs, reasoner.embed(torch.tensor([suffix + generated], dtype=torch.long))], 1)
    return run(inputs)[:, -len(generated) - 1 :]


@pytest.fixture
def all_rows_stay(monkeypatch):
    """Finished rows stay in the batch, so that what is spied on has its rows."""
    monkeypatch.setattr(generation_module, "COMPACT_BELOW", 0.0)


@pytest.mark.usefixtures("all_rows_stay")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause", "none", "words"])
def test_cached_generation_equals_one_full_pass(kind, reasoning, monkeypatch):
    reasoner = tiny_reasoner(kind, reasoning)
    seen = []
    plain = reasoner.logits
    monkeypatch.setattr(reasoner, "logits", lambda hidden: seen.append(plain(hidden)) or seen[-1])
    question, mask = encode(reasoner)
    made = reasoner.generate(question, mask, max_new_tokens=6)
    logits = torch.stack(seen, 1)
    for row in range(3):
        tokens = made.tokens[row][made.mask[row]].tolist()
        hidden = full_pass(reasoner, question[row : row + 1, mask[row]], tokens[:-1], made.latents)
        expected = plain(hidden)[0]
        torch.testing.assert_close(logits[row, : len(tokens)], expected, atol=1e-5, rtol=1e-5)
        expected[:, reasoner.encoder.bot + reasoner.encoder.eot] = float("-inf")
        assert tokens == expected.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause", "none", "words"])
def test_rows_that_are_done_leave_the_batch_and_nothing_changes(kind, reasoning, monkeypatch):
    reasoner = tiny_reasoner(kind, reasoning)
    question, mask = encode(reasoner, [" ".join(QUESTIONS[i % 3].split()[: 3 + i]) for i in range(12)])
    sizes = []

    def ends_now_and_then(logits, *_):
        sizes.append(len(logits))
        # of what the row itself has seen, not of its place
        return torch.where((1e2 * logits[:, 5]).floor() % 3 == 0, reasoner.encoder.end, logits.argmax(-1))

    monkeypatch.setattr(generation_module, "choose", ends_now_and_then)
    made = reasoner.generate(question, mask, max_new_tokens=8)
    assert sizes[0] == 12
    assert sizes[-1] < 6
    assert len(set(made.passes.tolist())) > 2
    monkeypatch.setattr(generation_module, "COMPACT_BELOW", 0.0)
    whole = reasoner.generate(question, mask, max_new_tokens=8)
    assert sizes[-1] == 12
    for name in ("tokens", "mask", "passes", "finished"):
        assert torch.equal(getattr(made, name), getattr(whole, name)), name


@pytest.mark.usefixtures("all_rows_stay")
@pytest.mark.parametrize("reasoning", ["latent", "parallel", "pause", "none", "words"])
def test_passes_are_counted_until_each_rows_end(reasoning, monkeypatch):
    reasoner = tiny_reasoner(reasoning=reasoning, latents=3)
    end = reasoner.encoder.end
    script = iter([[7, 7, end], [end, 8, 9], [9, end, 9], [6, 6, 6]])
    monkeypatch.setattr(generation_module, "choose", lambda *_: torch.tensor(next(script)))
    passes, plain = [], reasoner.run
    monkeypatch.setattr(reasoner, "run", lambda *args: passes.append(args[0].shape[1]) or plain(*args))
    question, mask = encode(reasoner)
    made = reasoner.generate(question, mask, max_new_tokens=10)
    before = {"latent": 3, "parallel": 2}.get(reasoning, 0)
    assert made.passes.tolist() == [before + 2, before + 3, before + 1]
    assert made.finished.all()
    assert made.mask.sum(1).tolist() == [2, 3, 1]
    assert made.tokens[0].tolist() == [7, end, reasoner.encoder.pad]
    assert made.tokens[2].tolist() == [end, reasoner.encoder.pad, reasoner.encoder.pad]
    # the calls that were really made are those of the slowest row
    assert len(passes) == made.passes.max()
    if reasoning == "latent":
        assert passes == [question.shape[1], 1, 1, 1 + len(reasoner.encoder.suffix), 1, 1]
    if reasoning == "parallel":
        assert passes == [question.shape[1], 3, 3 + len(reasoner.encoder.suffix), 1, 1]


@pytest.mark.usefixtures("all_rows_stay")
@pytest.mark.parametrize(("latents", "then", "before"), [(0, "answer", 0), (2, "words", 2), (0, "words", 0)])
def test_passes_without_latents_and_where_words_follow(latents, then, before, monkeypatch):
    """K = 0 is one pass over all that is known; of words nothing but ``<eot>`` is, not the answer prompt."""
    reasoner = tiny_reasoner(latents=3)
    reasoner.thought.latents = latents
    reasoner.settings = replace(reasoner.settings, then=then)
    end, passes, plain = reasoner.encoder.end, [], reasoner.run
    script = iter([[7, 7, end], [end, 8, 9], [9, end, 9]])
    monkeypatch.setattr(generation_module, "choose", lambda *_: torch.tensor(next(script)))
    monkeypatch.setattr(reasoner, "run", lambda *args: passes.append(args[0].shape[1]) or plain(*args))
    question, mask = encode(reasoner)
    made = reasoner.generate(question, mask, max_new_tokens=10)
    assert made.passes.tolist() == [before + 2, before + 3, before + 1]
    known = reasoner.encoder.eot if then == "words" else reasoner.encoder.suffix
    first = [question.shape[1], *[1] * (before - 1), 1 + len(known)] if before else [question.shape[1] + len(known)]
    assert passes == [*first, 1, 1]


def test_a_process_whose_rows_are_done_makes_the_passes_of_the_others(monkeypatch):
    """With sharded weights every pass is everyone's; what a process generated stays as it was."""
    reasoner = tiny_reasoner(reasoning="latent", latents=3)
    end = reasoner.encoder.end

    def ends_by_row(logits, *_):
        calls.append(len(logits))
        return torch.full((len(logits),), end if len(calls) == 2 else 7)

    monkeypatch.setattr(generation_module, "choose", ends_by_row)
    question, mask = encode(reasoner)
    made = []
    for elsewhere in (0, 6):  # how many passes another process makes
        calls: list[int] = []
        asked: list[int] = []
        monkeypatch.setattr(
            reasoner,
            "most",
            lambda here, last=elsewhere, asked=asked: asked.append(here) or max(here, len(asked) < last),
        )
        made.append(reasoner.generate(question, mask, max_new_tokens=10))
        assert len(calls) == max(2, elsewhere)
        assert asked == [3, *[0] * (len(calls) - 1)]
        assert calls[2:] == [1] * (len(calls) - 2)  # with one row
    alone, among = made
    steps = alone.tokens.shape[1]
    assert torch.equal(among.tokens[:, :steps], alone.tokens)
    assert (among.tokens[:, steps:] == reasoner.encoder.pad).all()
    assert torch.equal(among.mask[:, :steps], alone.mask)
    assert not among.mask[:, steps:].any()
    for name in ("passes", "finished"):
        assert torch.equal(getattr(among, name), getattr(alone, name)), name


def test_unfinished_rows_are_told(monkeypatch):
    reasoner = tiny_reasoner(reasoning="none")
    monkeypatch.setattr(generation_module, "choose", lambda logits, *_: torch.full((3,), 7))
    made = reasoner.generate(*encode(reasoner), max_new_tokens=4)
    assert made.passes.tolist() == [4, 4, 4]
    assert made.mask.all()
    assert not made.finished.any()


def test_sampling_is_reproducible_with_a_generator():
    reasoner = tiny_reasoner()
    question, mask = encode(reasoner)

    def sample(seed, temperature=1.0):
        generator = torch.Generator().manual_seed(seed)
        return reasoner.generate(question, mask, None, 8, temperature, generator).tokens.tolist()

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)
    greedy = reasoner.generate(question, mask, max_new_tokens=8).tokens.tolist()
    assert sample(0) != greedy
    # the coldest temperature is greedy and overflows nowhere
    assert sample(0, 1e-39) == greedy
    questions = list(QUESTIONS)
    by_text = [
        reasoner.answer(questions, temperature=1.0, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    assert by_text[0] == by_text[1]


def test_samples_follow_the_softmax():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([choose(logits.expand(1000, -1), 1.0, generator) for _ in range(20)])
    torch.testing.assert_close(drawn.bincount(minlength=4) / 20000, logits.exp()[0], atol=0.015, rtol=0)
    cold = torch.cat([choose(logits.expand(1000, -1), 0.5, generator) for _ in range(20)])
    squared = logits.exp()[0] ** 2
    torch.testing.assert_close(cold.bincount(minlength=4) / 20000, squared / squared.sum(), atol=0.015, rtol=0)


def test_markers_are_never_generated():
    reasoner = tiny_reasoner()
    head = reasoner.lm.get_output_embeddings().weight
    question, mask = encode(reasoner)
    state = reasoner.think(question, mask)[0]
    state = reasoner.extend(state, reasoner.embed(torch.tensor(reasoner.encoder.suffix).expand(3, -1)))
    with torch.no_grad():  # only the head: the tie to the embeddings is cut
        reasoner.lm.lm_head.weight = torch.nn.Parameter(head.clone())
        reasoner.lm.lm_head.weight[reasoner.encoder.bot] = 100 * state.hidden[0]
    assert int(reasoner.logits(state.hidden[:1, -1]).argmax()) == reasoner.encoder.bot[0]
    made = reasoner.generate(question, mask, max_new_tokens=3)
    assert not set(made.tokens.flatten().tolist()) & {*reasoner.encoder.bot, *reasoner.encoder.eot}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("reasoning", ["latent", "none"])
def test_generation_stays_within_the_models_positions(kind, reasoning, monkeypatch):
    longest = 15
    positions = longest + (1 + 3 + 2 if reasoning == "latent" else 1) + 4
    reasoner = tiny_reasoner(kind, reasoning, max_position_embeddings=positions)
    monkeypatch.setattr(generation_module, "choose", lambda logits, *_: torch.full((len(logits),), 7))
    question, mask = encode(reasoner, (QUESTIONS[2][:-36], QUESTIONS[1]))
    lengths = [len(ids) for ids in reasoner.encoder.questions((QUESTIONS[2][:-36], QUESTIONS[1]))]
    assert lengths == [longest, 5]
    made = reasoner.generate(question, mask, max_new_tokens=12)
    # the last token generated is never read, so it needs no position
    assert made.mask.sum(1).tolist() == [5, 12]
    assert not made.finished.any()
    alone = reasoner.generate(question[:1], mask[:1], max_new_tokens=12)
    assert alone.mask.sum(1).tolist() == [5]
    assert alone.passes[0] == made.passes[0]


def test_a_question_beyond_the_models_positions_is_refused():
    reasoner = tiny_reasoner("gpt2", max_position_embeddings=16)
    with pytest.raises(LoriError, match=r"a question of \d+ tokens leaves no place for an answer: the model has 16"):
        reasoner.answer(list(QUESTIONS))


@pytest.mark.usefixtures("all_rows_stay")
def test_a_finished_row_never_runs_past_the_models_positions(monkeypatch):
    reasoner = tiny_reasoner("gpt2", "none", max_position_embeddings=24)
    end = reasoner.encoder.end
    monkeypatch.setattr(generation_module, "choose", lambda logits, *_: torch.tensor([end, 7]))
    positions, plain = [], reasoner.run
    monkeypatch.setattr(reasoner, "run", lambda *args: positions.append(int(args[2].max())) or plain(*args))
    questions = (QUESTIONS[2][:-36] + " . . .", "Bob has 7")
    made = reasoner.generate(*encode(reasoner, questions), max_new_tokens=16)
    assert made.passes.tolist() == [1, 16]
    assert max(positions) < 24
