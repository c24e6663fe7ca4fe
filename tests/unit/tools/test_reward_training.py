"""How the embedded reward model and value head are made: pairs, loss, training, command."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib.models.loading import load_checkpoint
from tools.embedded import (
    corpus,
    preferences,
    recipe,
    reward_evaluation,
    tokenizer,
    train,
    train_reward,
)
from tools.embedded.__main__ import main

pytestmark = pytest.mark.unit


def tiny_corpus() -> corpus.Corpus:
    """Random word salad with enough words for passages and prompts."""
    generator = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("alp", "bet", "gam") for b in ("ha", "ta", "ma", "ra")])

    def documents(name: str, count: int) -> tuple[corpus.Document, ...]:
        texts = (" ".join(["A", *generator.choice(words, size=40)]) for _ in range(count))
        return tuple(corpus.Document(name, (text,)) for text in texts)

    return corpus.Corpus(documents("train.py", 20), documents("held_out.py", 6))


TINY_POLICY = recipe.Recipe(
    vocabulary=tokenizer.SMALLEST_VOCABULARY + 15,
    hidden=16,
    intermediate=24,
    layers=2,
    heads=2,
    positions=256,
    tokens_per_step=64,
    phases=((1.0, 16),),
    warmup_steps=1,
    sample_prompts=2,
    sample_tokens=4,
    held_out_sample_tokens=64,
)
TINY = train_reward.RewardRecipe(
    layers=1,
    steps=3,
    pairs_per_step=4,
    warmup_steps=1,
    hot_passages=4,
    held_out_hot=2,
    shipped_pairs=8,
    sample_prompts=3,
    value_prompts=5,
    value_samples=2,
)


@pytest.fixture(scope="module")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("policy")
    train.train_embedded(directory, steps=1, recipe=TINY_POLICY, corpus=tiny_corpus())
    return str(directory / "policy")


def test_training_is_deterministic_and_leaves_no_other_files(
    tmp_path: Path, tiny_policy: str
) -> None:
    random_state = torch.get_rng_state()
    cards = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        made = train_reward.train_reward(
            tmp_path / name, policy=tiny_policy, seed=seed, recipe=TINY, corpus=tiny_corpus()
        )
        made["training"].pop("training_seconds")
        cards.append(made)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert cards[0] == cards[1]
    assert cards[0]["model_sha256"] != cards[2]["model_sha256"]
    files = {p.relative_to(tmp_path / "one").as_posix() for p in (tmp_path / "one").rglob("*.*")}
    assert files == {
        "held_out_pairs.json",
        "reward_card.json",
        "value_head.safetensors",
        "reward/config.json",
        "reward/model.safetensors",
        "reward/tokenizer.json",
        "reward/tokenizer_config.json",
    }
    for file in files - {"reward_card.json"}:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_too_little_text_is_refused_before_training(tmp_path: Path, tiny_policy: str) -> None:
    few = replace(tiny_corpus(), held_out=tiny_corpus().held_out[:1])
    with pytest.raises(ValueError, match="1 passages and 1 prompts held out are too few"):
        train_reward.train_reward(tmp_path, policy=tiny_policy, recipe=TINY, corpus=few)


def test_a_new_reward_model_begins_as_the_policys_first_layers(tiny_policy: str) -> None:
    policy = load_checkpoint(tiny_policy).model
    model = train_reward.new_reward_model(policy, 1, 0)
    assert model.config.num_labels == 1
    assert policy.config.num_hidden_layers == 2
    theirs = dict(policy.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        if name != "score.weight":
            assert torch.equal(parameter, theirs[name]), name
            assert parameter.data_ptr() != theirs[name].data_ptr(), name


@pytest.mark.parametrize("kind", preferences.KINDS[:-1])
def test_damage_keeps_length_and_both_ends(kind: str) -> None:
    shares = np.full(300, 1 / 299)
    shares[0] = 0.0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        passage = [0, *map(int, rng.integers(1, 300, size=int(rng.integers(11, 159)))), 0]
        got = preferences.damaged(kind, passage, shares, rng)
        assert got != passage
        assert len(got) == len(passage)
        assert (got[0], got[-1]) == (0, 0)
        assert 0 not in got[1:-1]
        if kind == "shuffle":
            assert sorted(got) == sorted(passage)
        if kind == "repeat":
            assert set(got) <= set(passage)


def test_damage_that_is_impossible_is_named() -> None:
    rng = np.random.default_rng(0)
    for kind, passage in (("hot", [0, 1, 2, 0]), ("shuffle", [0, 5, 5, 5, 0])):
        with pytest.raises(ValueError, match=f"cannot damage {len(passage)} tokens by '{kind}'"):
            preferences.damaged(kind, passage, np.full(9, 1 / 9), rng)


def test_passages_begin_and_end_as_the_policy_reads_them() -> None:
    bpe = tokenizer.train_tokenizer(["some text"], tokenizer.SMALLEST_VOCABULARY)
    long, short = "one two three " * 30, "a short document"
    documents = [corpus.Document("a.py", (short, long)), corpus.Document("b.py", ("-" * 40,))]
    found = preferences.passages(bpe, documents)
    assert [row[0] for row in found] == [0, 0]
    assert [len(row) for row in found] == [preferences.LENGTHS[1]] * 2
    whole = preferences.passages(bpe, [corpus.Document("c.py", (short,))])
    assert whole == [[0, *bpe.encode(short, add_special_tokens=False).ids, 0]]


def test_a_response_ends_with_its_first_end_of_text() -> None:
    assert preferences.until_end([4, 0, 5, 0]) == [4, 0]
    assert preferences.until_end([4, 5]) == [4, 5]


def test_a_batch_is_a_function_of_its_step_and_holds_every_kind() -> None:
    rng = np.random.default_rng(0)
    texts = [[0, *map(int, rng.integers(1, 50, size=60))] for _ in range(5)]
    hot = [preferences.Pair("hot", texts[0], texts[1])]
    shares = preferences.unigram(texts, 50)
    arguments: dict[str, Any] = {"texts": texts, "hot": hot, "shares": shares, "seed": 0}
    batch = preferences.batch_at(3, pairs=8, **arguments)
    assert [pair.kind for pair in batch] == [*preferences.KINDS, *preferences.KINDS]
    assert batch == preferences.batch_at(3, pairs=8, **arguments)
    assert batch != preferences.batch_at(4, pairs=8, **arguments)
    assert len({len(pair.chosen) for pair in batch}) == 1


def test_pairs_survive_their_file(tmp_path: Path) -> None:
    found = [preferences.Pair("repeat", [0, 7, 8], [0, 7, 7]), preferences.Pair("hot", [0], [5])]
    preferences.write_pairs(tmp_path / "pairs.json", found)
    assert preferences.read_pairs(tmp_path / "pairs.json") == found


def test_the_loss_is_bradley_terry_over_prefixes() -> None:
    """Against the definition, pair by pair; FP32 sums of at most 25 terms."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(3, 5, generator=generator) for _ in range(2))
    real = torch.arange(5) < torch.tensor([[5], [3], [4]])
    damaged = real & (torch.arange(5) >= torch.tensor([[2], [1], [4]]))
    want = []
    for c, r, c_real, r_real in zip(chosen, rejected, real, damaged, strict=True):
        terms = {
            (t, s): float(torch.log1p(torch.exp(r[s].double() - c[t].double())))
            for t in range(5)
            for s in range(5)
            if c_real[t] and r_real[s]
        }
        same = [value for (t, s), value in terms.items() if t == s]
        want.append(
            0.5 * float(np.mean(same)) + 0.5 * float(np.mean(list(terms.values())))
            if terms
            else 0.0
        )
    assert want[2] == 0.0  # damage begins where the passage has ended
    got = float(train_reward.preference_loss(chosen, rejected, real, damaged))
    assert abs(got - np.mean(want)) <= 30 * 2.0**-24 * max(want)


def test_the_loss_sees_a_drift_with_the_position() -> None:
    """The planted fault of the module: both scores rise with the position by the same amount."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 6, generator=generator)
    real = torch.ones(4, 6, dtype=torch.bool)
    drift = 10.0 * torch.arange(6)
    level = train_reward.preference_loss(scores + 3, scores, real, real)
    drifting = train_reward.preference_loss(scores + 3 + drift, scores + drift, real, real)
    assert float(drifting) > 2 * float(level)


def test_the_error_of_explained_variance_counts_prompts_not_tokens() -> None:
    """Tokens that only repeat their prompt's numbers add nothing; taken for independent ones, the
    planted fault, n copies would divide the error by about sqrt(n)."""
    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(50, generator=generator)
    values = 0.5 * returns + 0.5 * torch.randn(50, generator=generator)
    prompt = torch.arange(50)
    copies = 9
    error = reward_evaluation.explained_variance_error
    once = error(values, returns, prompt)
    many = (values.repeat(copies), returns.repeat(copies))
    again = error(*many, prompt.repeat(copies))
    # float64 sums of 450 terms, and a standard deviation of 1,000 differences near 1.
    assert abs(again - once) <= 4 * 450 * 2.0**-53 * 1000**0.5
    assert error(*many, torch.arange(50 * copies)) < once / 2


def test_the_command_passes_on_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Path, int]] = []

    def recorded(output_dir: Path, *, seed: int) -> dict[str, Any]:
        calls.append((output_dir, seed))
        return {
            "held_out": {"accuracy": 0.95},
            "value_head": {"held_out": {"explained_variance": 0.25}},
        }

    monkeypatch.setattr(train_reward, "train_reward", recorded)
    arguments = ["train-reward", "--output_dir", str(tmp_path), "--seed", "3"]
    assert main(arguments) == 0
    assert calls == [(tmp_path, 3)]
    assert "95.0% of held-out pairs right, value head explains 25%" in capsys.readouterr().out
