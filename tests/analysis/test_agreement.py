"""Results of the rationale in latents, against plain loops."""

from __future__ import annotations

import pytest
import torch
from thinkers import thinker, world
from transformers import PreTrainedTokenizerFast

from lori_pl.analysis.agreement import NONE, agreement, step_results
from lori_pl.data.problem import Problem
from lori_pl.data.template import Encoder, Template


def test_results_of_the_embedded_world_are_what_follows_each_equals_sign():
    reasoner, problems = thinker(), world(20)
    found = step_results(reasoner.encoder, problems)
    expected = [[step.strip("<>").rpartition("=")[2] for step in problem.steps] for problem in problems]
    width = max(map(len, expected))
    ids = [[reasoner.tokenizer.convert_tokens_to_ids(result) for result in row] for row in expected]
    assert found.tokens.tolist() == [row + [NONE] * (width - len(row)) for row in ids]
    assert found.count == sum(map(len, expected))
    assert found.longer == 0


def test_of_a_longer_result_the_first_token_counts():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", *"0123456789+-=<>#x "]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    problems = [Problem("a", "x", ["<<7+5=12>>", "<<12-9=3>>"], "3"), Problem("b", "x", [], "1")]
    found = step_results(Encoder(fast, Template(), markers=False), problems)
    assert found.tokens.tolist() == [[words.index("1"), words.index("3")], [NONE, NONE]]
    assert (found.count, found.longer) == (2, 1)
    for none in ([], problems[1:]):
        assert step_results(Encoder(fast, Template(), markers=False), none).count == 0


@pytest.mark.parametrize("top_k", [1, 3])
def test_agreement_and_chance_are_those_of_plain_loops(top_k):
    generator = torch.Generator().manual_seed(0)
    problems, layers, latents, vocabulary = 12, 2, 3, 6
    order = torch.rand(problems, layers, latents, vocabulary, generator=generator).argsort(-1)
    top = order[..., :top_k]
    lengths = torch.tensor([1, 2, 3, 2, 3, 3, 2, 2, 3, 1, 3, 4])  # one alone has four
    results = torch.randint(0, vocabulary, (problems, 4), generator=generator)
    results[torch.arange(4) >= lengths[:, None]] = NONE
    found = agreement(top, results, vocabulary)
    for step in range(4):
        rows = [b for b in range(problems) if lengths[b] > step and (lengths == lengths[b]).sum() > 1]
        assert found.problems[step] == len(rows)
        for layer in range(layers):
            for latent in range(latents):
                pairs = []
                for b in rows:
                    seen = set(top[b, layer, latent].tolist())
                    others = [c for c in range(problems) if c != b and lengths[c] == lengths[b]]
                    by_others = [int(results[c, step]) in seen for c in others]
                    in_others = [int(results[b, step]) in top[c, layer, latent].tolist() for c in others]
                    hit = int(results[b, step]) in seen
                    pairs.append((hit, sum(by_others) / len(others), sum(in_others) / len(others)))
                place = (layer, step, latent)
                if not pairs:
                    assert found.share[place].isnan()
                    continue
                hits, chances, in_others = torch.tensor(pairs, dtype=torch.float64).T
                assert float(found.share[place]) == pytest.approx(float(hits.mean()))
                assert float(found.chance[place]) == pytest.approx(float(chances.mean()))
                pseudo = torch.zeros(len(rows), dtype=torch.float64)
                for length in {int(lengths[b]) for b in rows}:
                    group = torch.tensor([int(lengths[b]) == length for b in rows])
                    n = int(group.sum())
                    lost = hits[group] - (chances + in_others)[group] * (n - 1) / max(n - 2, 1)
                    pseudo[group] = lost - lost.mean() + (hits - chances)[group].mean()
                error = pseudo.std() / len(hits) ** 0.5
                assert float(found.error[place]) == pytest.approx(float(error))
    assert found.summary()["share"][0][3] == [None] * latents


def test_a_latent_that_knows_nothing_of_the_problem_agrees_by_chance():
    results = torch.randint(0, 5, (40, 2), generator=torch.Generator().manual_seed(0))
    top = torch.tensor([1, 3]).expand(40, 1, 1, 2)  # the same whatever is asked
    found = agreement(top, results, 5)
    torch.testing.assert_close(found.share, found.chance)
    assert float(found.error.abs().max()) < 1e-12  # they are alike whatever the problems
    knows = agreement(results[:, None, :1, None].contiguous(), results, 5)
    assert float(knows.share[0, 0, 0]) == 1
    assert float(knows.chance[0, 0, 0]) < 0.5


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0])
def test_the_error_is_how_far_draws_of_problems_spread(right):
    """Latents that say the result of so many problems, and anything of the others."""
    generator = torch.Generator().manual_seed(0)
    odds = torch.tensor([0.4, 0.3, 0.2, 0.1])
    differences, errors = [], []
    for _ in range(400):
        results = odds.multinomial(100, replacement=True, generator=generator)[:, None]
        guessed = odds.multinomial(100, replacement=True, generator=generator)[:, None]
        knows = torch.rand(100, 1, generator=generator) < right
        found = agreement(torch.where(knows, results, guessed)[:, None, :, None], results, 4)
        differences.append(float(found.share - found.chance))
        errors.append(float(found.error))
    spread = float(torch.tensor(differences).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


def test_the_error_is_that_of_the_jackknife():
    generator = torch.Generator().manual_seed(0)
    results = torch.randint(0, 4, (9, 1), generator=generator)
    top = torch.rand(9, 1, 1, 4, generator=generator).argsort(-1)[..., :2]

    def difference(rows: list[int]) -> float:
        found = agreement(top[rows], results[rows], 4)
        return float(found.share - found.chance)

    without = torch.tensor([difference([k for k in range(9) if k != left_out]) for left_out in range(9)])
    expected = (8 / 9 * (without - without.mean()).square().sum()).sqrt()
    assert float(agreement(top, results, 4).error) == pytest.approx(float(expected), rel=1e-5)
