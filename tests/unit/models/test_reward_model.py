"""Reward models load by one path; a score is read at the last real token whatever stands behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from precision_lib.bounds import gamma
from precision_lib.formats import FORMATS, get_format
from precision_lib.models import pipeline as pipeline_module
from precision_lib.models.loading import (
    EMBEDDED,
    CheckpointError,
    load_checkpoint,
    set_parameters,
    working_copy,
)
from precision_lib.models.pipeline import load_pipeline
from precision_lib.models.reward_model import (
    RewardModel,
    load_reward_model,
    reward_inputs,
    score_tokens,
)
from precision_lib.runtime import deterministic
from tests.unit.conftest import byte_tokenizer

pytestmark = pytest.mark.unit

ARCHITECTURES = ("Llama", "Qwen3")
FP32 = FORMATS["fp32"]
LENGTHS = torch.tensor([5, 20, 12])


def tokens() -> torch.Tensor:
    """[3, 20] int64, every row full; the test says how many of a row are real."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 257, (3, 20), generator=generator)


def save_classifier(directory: Path, architecture: str, labels: int = 1, **changes: Any) -> Path:
    """A random sequence classifier with its tokenizer, saved as a user's would be."""
    import transformers

    tokenizer = byte_tokenizer()
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=256,
        initializer_range=0.2,
        num_labels=labels,
        **changes,
    )
    with deterministic(0):
        model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=ARCHITECTURES)
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """Without a pad id, as most published causal reward models are."""
    directory = tmp_path_factory.mktemp(request.param)
    return load_reward_model(str(save_classifier(directory, request.param, pad_token_id=None)))


@torch.no_grad()
def scores(model: Any, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    with deterministic():
        return score_tokens(model, rows, lengths)


def test_a_reward_model_loads_in_fp32_with_eager_attention(reward: RewardModel) -> None:
    assert {p.dtype for p in reward.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in reward.model.parameters())
    assert reward.model.config._attn_implementation == "eager"
    assert not reward.model.training
    assert load_reward_model(reward.name).sha256 == reward.sha256


def test_a_score_is_transformers_own_logit(reward: RewardModel) -> None:
    """Batch size 1 needs no pad id. Same hidden state; two orders of one sum of H products."""
    for row, length in zip(tokens(), LENGTHS, strict=True):
        alone = row[None, : int(length)]
        with torch.no_grad(), deterministic():
            want = reward.model(input_ids=alone).logits
            hidden = reward.model.base_model(input_ids=alone).last_hidden_state[0, -1].double()
        got = scores(reward.model, alone, length[None])
        weight = reward.model.score.weight[0].double()
        limit = 2 * gamma(len(weight), FP32) * float(hidden.abs() @ weight.abs())
        assert got.shape == (1,)
        assert float((got - want[0]).abs()) <= limit


def test_what_stands_behind_the_last_token_changes_no_bit(reward: RewardModel) -> None:
    rows = tokens()
    other = rows.clone()
    for row, length in zip(other, LENGTHS, strict=True):
        row[int(length) :] = 0
    assert not torch.equal(rows, other)
    assert torch.equal(scores(reward.model, rows, LENGTHS), scores(reward.model, other, LENGTHS))
    # The planted alternative, the score at the end of the row, sees the padding.
    ends = torch.full((3,), 20)
    assert not torch.equal(scores(reward.model, rows, ends), scores(reward.model, other, ends))


def test_wider_padding_changes_a_score_by_rounding_alone(reward: RewardModel) -> None:
    """Other shapes may sum in another order: two scores, each with an error of about
    sqrt(k) u |h|.|w| for k roundings on the longest path (Higham and Mary 2019)."""
    config = reward.model.config
    per_layer = 3 * config.hidden_size + config.head_dim + 20 + config.intermediate_size
    roundings = config.num_hidden_layers * per_layer + config.hidden_size
    together = scores(reward.model, tokens(), LENGTHS)
    for number, length in enumerate(LENGTHS):
        alone = tokens()[number : number + 1, : int(length)]
        with torch.no_grad(), deterministic():
            hidden = reward.model.base_model(input_ids=alone).last_hidden_state[0, -1]
        size = float(hidden.abs() @ reward.model.score.weight[0].abs())
        limit = 2 * roundings**0.5 * FP32.unit_roundoff * size
        difference = float((together[number] - scores(reward.model, alone, length[None])).abs())
        assert difference <= limit


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp64"])
def test_a_score_has_the_format_of_the_models_parameters(reward: RewardModel, fmt: str) -> None:
    working = working_copy(reward.model)
    set_parameters(working, reward.model, fmt)
    got = scores(working, tokens(), LENGTHS)
    assert got.dtype == get_format(fmt).dtype
    difference = (got.double() - scores(reward.model, tokens(), LENGTHS)).abs().max()
    assert float(difference) > 0  # it is no FP32 score with another label


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((0, 4), [], r"N, R >= 1 .* \(0, 4\)"),
        ((2, 4), [1], r"got \(2, 4\) and \(1,\)"),
        ((2, 4), [0, 4], "lengths must be 1 to 4, .* got 0 to 4"),
        ((2, 4), [1, 5], "lengths must be 1 to 4, .* got 1 to 5"),
    ],
)
def test_lengths_that_do_not_fit_are_named(
    shape: tuple[int, int], lengths: list[int], message: str
) -> None:
    rows = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        score_tokens(None, rows, torch.tensor(lengths, dtype=torch.int64))


def test_a_sequence_beyond_the_models_positions_is_named(reward: RewardModel) -> None:
    rows = torch.zeros((1, 300), dtype=torch.int64)
    with pytest.raises(ValueError, match="takes 257 of the reward model's 256 positions"):
        score_tokens(reward.model, rows, torch.tensor([257]))


# Loading errors


def test_another_number_of_labels_is_named(tmp_path: Path) -> None:
    save_classifier(tmp_path, "Llama", labels=3)
    with pytest.raises(CheckpointError, match=r"has 3 labels, .* save it with num_labels=1"):
        load_reward_model(str(tmp_path))


def test_a_language_model_is_no_reward_model(saved_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks score\.weight"):
        load_reward_model(str(saved_checkpoint("Llama")))


def test_a_checkpoint_without_its_score_head_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_classifier(tmp_path, "Llama")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks score\.weight, which would be random"):
        load_reward_model(str(tmp_path))


def test_an_architecture_without_a_score_head_is_named(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    with deterministic(0):
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no linear layer 'score'"):
        load_reward_model(str(tmp_path))


def test_missing_and_truncated_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_reward_model(str(tmp_path))
    save_classifier(tmp_path, "Llama")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot load a reward model .* whole"):
        load_reward_model(str(tmp_path))


# Tokens of the reward model


def test_equal_vocabularies_keep_the_tokens(reward: RewardModel) -> None:
    sequences = [[0, 5, 6], [0, 7]]
    got = reward_inputs(reward, byte_tokenizer(), sequences)
    assert got == sequences
    assert got[0] is not sequences[0]


def test_other_vocabularies_go_by_the_text(reward: RewardModel) -> None:
    """The embedded policy's BPE tokens become bytes, without its end-of-text tokens."""
    policy = load_checkpoint(EMBEDDED)
    text = "Return the  value ."
    ids = [*policy.tokenizer(text).input_ids, 0]
    got = reward_inputs(reward, policy.tokenizer, [ids])
    assert reward.tokenizer.decode(got[0]) == text
    assert len(got[0]) == len(text)
    with pytest.raises(ValueError, match=r"sequence 1 \(1 tokens of the policy\) is empty text"):
        reward_inputs(reward, policy.tokenizer, [ids, [0]])


# Pipeline


def test_a_pipeline_of_other_models_has_no_value_head(
    saved_checkpoint: Callable[[str], Path], reward: RewardModel
) -> None:
    directory = str(saved_checkpoint("Llama"))
    loaded = load_pipeline(directory, reward.name)
    assert loaded.reference is loaded.policy
    assert loaded.value_head is None
    assert loaded.reward.sha256 == reward.sha256


def test_a_reference_of_its_own_must_have_the_policys_tokens(
    saved_checkpoint: Callable[[str], Path],
    reward: RewardModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama, qwen = (str(saved_checkpoint(name)) for name in ("Llama", "Qwen3"))
    loaded = load_pipeline(llama, reward.name, reference_model=qwen)
    assert loaded.reference.name == qwen
    assert loaded.reference.sha256 != loaded.policy.sha256
    monkeypatch.setattr(
        pipeline_module,
        "load_checkpoint",
        lambda name, *_: SimpleNamespace(
            name=name, tokenizer=SimpleNamespace(get_vocab=lambda: {name: 0})
        ),
    )
    with pytest.raises(CheckpointError, match=r"reference r has another vocabulary than policy p"):
        load_pipeline("p", reward.name, reference_model="r")
