"""Responses are drawn once, the same whatever the batching, from the model's own distribution."""

from typing import Any

import pytest
import torch

from precision_lib.models.kv_cache import forward_with_cache
from precision_lib.models.loading import Checkpoint
from precision_lib.ppo import logprobs
from precision_lib.runtime import deterministic
from precision_lib.trajectories import sampling
from precision_lib.trajectories.sampling import sample_responses

PROMPTS = [[0, 5, 7], [0, 9], [0, 1, 2, 3, 4], [0]]


def test_rows_per_forward_do_not_change_the_tokens(tiny_llama: Checkpoint) -> None:
    batches = [
        sample_responses(tiny_llama.model, PROMPTS, 30, seed=3, rows=rows) for rows in (1, 3, 4)
    ]
    assert torch.equal(batches[0].tokens, batches[1].tokens)
    assert torch.equal(batches[0].tokens, batches[2].tokens)


def test_what_is_reported_is_the_log_prob_of_the_token_that_was_drawn(
    tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the logits of each decoding step, in float64, rounded once; in batches of 3 and 1."""
    seen: list[torch.Tensor] = []
    decoding = forward_with_cache

    def watched(*arguments: Any, **inputs: Any) -> Any:
        logits, cache = decoding(*arguments, **inputs)
        seen.append(torch.log_softmax(logits[:, -1].double(), -1))
        return logits, cache

    monkeypatch.setattr(sampling, "forward_with_cache", watched)
    responses, got = sampling.sample_and_report(tiny_llama.model, PROMPTS, 6, seed=0, rows=3)
    drawn = responses.tokens[responses.mask].view(4, 6)
    steps = torch.cat([torch.stack(part, 1) for part in (seen[:6], seen[6:])])
    want = steps.gather(2, drawn.unsqueeze(2)).squeeze(2).float()
    assert got.dtype == torch.float32
    assert (got - want).abs().max() <= 2.0**-23 * want.abs().max()
    assert not torch.isclose(got, want.roll(1, 1)).any(), "another token's is told apart"


def test_another_seed_draws_other_tokens(tiny_llama: Checkpoint) -> None:
    first, second = (sample_responses(tiny_llama.model, PROMPTS, 30, seed=s) for s in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)


def test_the_mask_covers_the_response_and_nothing_else(tiny_llama: Checkpoint) -> None:
    responses = sample_responses(tiny_llama.model, PROMPTS, 7, seed=0)
    assert responses.tokens.shape == (4, 12)
    assert responses.mask.sum(1).tolist() == [7] * 4
    for row, prompt in enumerate(PROMPTS):
        assert responses.tokens[row, : len(prompt)].tolist() == prompt
        assert responses.mask[row].int().argmax() == len(prompt)


def test_tokens_follow_the_full_forwards_distribution(tiny_llama: Checkpoint) -> None:
    """log p + entropy of sampled tokens sums to a standard normal; see the forensics test.

    It also shows that left padding and the KV cache sample what a right-padded forward scores.
    """
    prompts = [p for p in PROMPTS for _ in range(20)]
    responses = sample_responses(tiny_llama.model, prompts, 40, seed=0)
    with torch.no_grad(), deterministic():
        out = tiny_llama.model(input_ids=responses.tokens).logits
    scores, tokens = logprobs.shift(out, responses.tokens)
    log_p = torch.log_softmax(scores.double(), -1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    variance = (p * (log_p + entropy.unsqueeze(-1)) ** 2).sum(-1)
    mask = responses.mask[:, 1:]
    got = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    z = float((got + entropy)[mask].sum() / variance[mask].sum().sqrt())
    assert mask.sum() == 80 * 40
    assert abs(z) < 4.5
    wrong = log_p.gather(-1, responses.tokens[:, :-1].unsqueeze(-1)).squeeze(-1)  # off by one
    assert abs(float((wrong + entropy)[mask].sum() / variance[mask].sum().sqrt())) > 45


def test_micro_batches_cover_every_row_once(tiny_llama: Checkpoint) -> None:
    responses = sample_responses(tiny_llama.model, PROMPTS, 3, seed=0)
    order = torch.tensor([3, 1, 0, 2])
    rows = [r for numbers, _ in responses.micro_batches(3, order) for r in numbers.tolist()]
    assert rows == [3, 1, 0, 2]
    for numbers, batch in responses.micro_batches(3, order):
        assert torch.equal(batch.tokens, responses.tokens[numbers])


@pytest.mark.parametrize(
    ("prompts", "length", "message"),
    [
        ([], 5, "nothing to sample: 0 prompts"),
        ([[1], []], 5, "2 prompts, 1 of them empty"),
        ([[1]], 0, "0 tokens"),
        ([[1, 2]], 255, r"take 257 tokens, the model has 256 positions; use shorter --seq_lengths"),
    ],
)
def test_bad_requests_are_refused(
    tiny_llama: Checkpoint, prompts: list[list[int]], length: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_responses(tiny_llama.model, prompts, length, seed=0)
