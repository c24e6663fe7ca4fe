"""The shipped reward model and value head are what their card says."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib.models import embedded
from precision_lib.models.loading import working_copy
from precision_lib.models.pipeline import Pipeline, load_pipeline
from precision_lib.models.value_head import explained_variance, predict_values
from tests.unit.small_blocks import read
from tools.embedded import artefacts, preferences, reward_evaluation

pytestmark = pytest.mark.unit

# Decisions, not tolerances: what the project asks of its embedded reward model.
ACCURACY = 0.9
REWARD_BYTES = 9_000_000


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return read(embedded.REWARD_CARD_FILE)


@pytest.fixture(scope="module")
def models() -> Pipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def pairs() -> list[preferences.Pair]:
    return preferences.read_pairs(embedded.PAIRS_FILE)


@pytest.fixture(scope="module")
def measured(models: Pipeline, pairs: list[preferences.Pair]) -> dict[str, Any]:
    return reward_evaluation.pair_figures(models.reward.model, pairs)


def standard_error(count: int) -> float:
    """Of a share of `count` independent pairs whose true share is `ACCURACY`."""
    error: float = (ACCURACY * (1 - ACCURACY) / count) ** 0.5
    return error


def is_accurate(accuracy: float, count: int) -> bool:
    """Whether a share of `count` pairs is no more than two standard errors below `ACCURACY`."""
    return accuracy >= ACCURACY - 2 * standard_error(count)


def score_limit(model: Any, rows: list[list[int]]) -> float:
    """How far two FP32 evaluations of a score may differ: two errors of sqrt(k) u max |h|.|w|.

    k roundings in a row on the longest path through the layers, u = 2^-24 (the probabilistic bound
    of Higham and Mary 2019).
    """
    c = model.config
    per_layer = 3 * c.hidden_size + c.head_dim + preferences.LENGTHS[1] + c.intermediate_size
    roundings = c.num_hidden_layers * per_layer + c.hidden_size
    tokens, lengths = preferences.padded(rows)
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows)), lengths - 1]
    largest = float((last.abs() @ model.score.weight[0].abs()).max())
    limit: float = 2 * roundings**0.5 * 2.0**-24 * largest
    return limit


def test_card_belongs_to_these_files(card: dict[str, Any], models: Pipeline) -> None:
    weights = embedded.REWARD_DIR / "model.safetensors"
    assert artefacts.file_sha256(weights) == card["model_sha256"]
    assert artefacts.file_sha256(embedded.VALUE_HEAD_FILE) == card["value_head_sha256"]
    assert card["training"]["policy_sha256"] == models.policy.sha256
    assert (
        card["training"]["corpus_sha256"] == read(embedded.CARD_FILE)["training"]["corpus_sha256"]
    )
    assert sum(p.numel() for p in models.reward.model.parameters()) == card["parameters"]
    assert models.reward.tokenizer.get_vocab() == models.policy.tokenizer.get_vocab()


def test_files_are_small_and_hold_no_pickle_and_no_path() -> None:
    files = list(embedded.REWARD_DIR.iterdir())
    assert sum(file.stat().st_size for file in files) <= REWARD_BYTES
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    for file in files:
        if file.suffix == ".json" and file.name != "tokenizer.json":
            strings = json.loads(file.read_text()).values()
            assert not [s for s in strings if isinstance(s, str) and s.startswith("/")]


def test_card_gives_the_accuracy_and_scores_that_the_model_really_has(
    card: dict[str, Any],
    models: Pipeline,
    pairs: list[preferences.Pair],
    measured: dict[str, Any],
) -> None:
    model, got, written = models.reward.model, measured, card["held_out_pairs"]
    limit = score_limit(model, [p.chosen for p in pairs] + [p.rejected for p in pairs])
    assert got["pairs"] == written["pairs"] == len(pairs) >= 100
    for side in ("chosen", "rejected"):
        assert abs(got[side]["mean"] - written[side]["mean"]) <= limit
    margins = reward_evaluation.scores_of(model, [p.chosen for p in pairs])
    margins -= reward_evaluation.scores_of(model, [p.rejected for p in pairs])
    undecided = float((np.abs(margins) <= 2 * limit).mean())
    assert abs(got["accuracy"] - written["accuracy"]) <= undecided


def test_nine_of_ten_held_out_pairs_are_right(
    card: dict[str, Any], measured: dict[str, Any]
) -> None:
    """The card's figure on all pairs, and the one measured here on those that ship."""
    assert card["held_out"]["accuracy"] >= ACCURACY
    assert is_accurate(measured["accuracy"], measured["pairs"])
    assert set(measured["by_kind"]) == set(preferences.KINDS)


@pytest.mark.parametrize("kind", preferences.KINDS)
def test_no_kind_of_damage_is_missed(card: dict[str, Any], kind: str) -> None:
    figures = card["held_out"]["by_kind"][kind]
    assert is_accurate(figures["accuracy"], figures["rejected"]["count"])


def test_no_length_is_misread(card: dict[str, Any]) -> None:
    rows = card["held_out"]["by_length"]
    assert sum(row["pairs"] for row in rows) == card["held_out"]["pairs"]
    for row in rows:
        if row["first"] >= preferences.LENGTHS[0]:
            assert is_accurate(row["accuracy"], row["pairs"]), row


def test_an_untrained_score_head_fails_the_same_check(
    models: Pipeline, pairs: list[preferences.Pair]
) -> None:
    """A random direction ranks pairs by chance; 0.9 - 2 standard errors is far above one half."""
    untrained = working_copy(models.reward.model)
    generator = torch.Generator().manual_seed(0)
    untrained.score.weight.data.normal_(generator=generator)
    accuracy = reward_evaluation.pair_figures(untrained, pairs)["accuracy"]
    assert not is_accurate(accuracy, len(pairs))


def test_careful_sampling_earns_reward(card: dict[str, Any]) -> None:
    """What makes the reward one that PPO can raise: it falls with the temperature."""
    rows = card["own_samples"]
    assert [row["temperature"] for row in rows] == list(reward_evaluation.SAMPLE_TEMPERATURES)
    assert {row["count"] for row in rows} == {card["training"]["recipe"]["sample_prompts"]}
    first, last = rows[0], rows[-1]
    error = ((first["std"] ** 2 + last["std"] ** 2) / first["count"]) ** 0.5
    assert first["mean"] - last["mean"] > 2 * error
    assert all(row["std"] > 0 for row in rows)


def held_out_states(models: Pipeline) -> reward_evaluation.States:
    """States of one response to each of 108 prompts from text that no model was trained on."""
    texts = embedded.load_prompts()[::4]
    prompts = [models.policy.tokenizer(text).input_ids for text in texts]
    sampled = preferences.continuations(
        models.policy.model, prompts, reward_evaluation.RESPONSE_TOKENS, seed=11
    )
    scores = reward_evaluation.scores_of(models.reward.model, sampled)
    return reward_evaluation.response_states(
        models.policy.model, sampled, [len(p) for p in prompts], scores
    )


def test_the_value_head_explains_returns_it_was_not_fitted_on(
    card: dict[str, Any], models: Pipeline
) -> None:
    """Explained variance above 0 by more than two standard errors; here as the card says.

    On this machine the same tokens are drawn each time; on another one they may differ, so the two
    figures may be four standard errors of their difference apart. The card's error, from so many
    more sequences, scales with their number at most. A head of the same weights in another order,
    the planted fault, is further away than that, and worse than a constant.
    """
    written = card["value_head"]["held_out"]
    assert written["explained_variance"] > 2 * written["standard_error"]
    head = models.value_head
    assert head is not None
    states = held_out_states(models)
    ratio = written["scores"]["count"] / (int(states.sequence.max()) + 1)
    limit = 4 * written["standard_error"] * (1 + ratio) ** 0.5

    def explained(weight: torch.Tensor) -> float:
        values = predict_values(states.hidden, weight, head.bias, "fp32")
        return explained_variance(values, states.returns)

    weight = head.weight
    assert abs(explained(weight) - written["explained_variance"]) <= limit
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    assert explained(weight[order]) < min(0.0, written["explained_variance"] - limit)
