"""What the embedded model is made from, and measured against: the corpus and the trigram model."""

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.embedded import corpus, trigram

pytestmark = pytest.mark.unit

EPS64 = float(np.finfo(np.float64).eps)

SOURCE = '''"""Module text."""
# one line is no block

# A block of comments
# that spans three
# whole lines.
class Outer:
    """Outer text."""

    def method(self):
        """Method text."""

def undocumented():
    x = 1  # not a block
    return x
'''

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()  # noqa: SIM905


# Corpus


def test_docstrings_of_one_definition_form_one_document() -> None:
    documents = corpus.docstring_documents(SOURCE, "m.py")
    assert [document.units for document in documents] == [
        ("Module text.",),
        ("Outer text.", "Method text."),
    ]


def test_only_blocks_of_full_line_comments_are_text() -> None:
    documents = corpus.comment_documents(SOURCE, "m.py")
    assert [d.text for d in documents] == ["A block of comments\nthat spans three\nwhole lines."]


def test_repeated_units_are_kept_once_whatever_their_white_space() -> None:
    first, second = corpus.Document("a", ("x  y", "z")), corpus.Document("b", ("x\ny",))
    assert corpus.unique_units([first, second]) == [first]


@pytest.mark.parametrize(
    ("held_out", "kept"),
    [
        (" ".join(WORDS[:10]), False),  # the whole run of ten
        (" ".join(["new", *WORDS[1:11], "new"]).upper(), False),  # inside, in other case
        (" ".join(WORDS[:9]) + " new", True),  # nine shared words are allowed
    ],
)
def test_a_shared_run_of_ten_words_is_a_leak(held_out: str, kept: bool) -> None:
    known = [corpus.Document("train", (" ".join(WORDS),))]
    result = corpus.without_leaks([corpus.Document("h", (held_out,))], known)
    assert bool(result) is kept


def test_a_short_held_out_text_that_is_a_whole_training_unit_is_a_leak() -> None:
    known = [corpus.Document("train", ("Other text.", "Close it!"))]
    assert corpus.without_leaks([corpus.Document("h", ("close it",))], known) == []


def test_reading_skips_tests_and_depends_on_content_alone(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "test").mkdir(parents=True)
        (root / "module.py").write_text(SOURCE)
        (root / "test" / "module.py").write_text('"""Never read."""')
        result = corpus.read_corpus(root)
        assert "Never read." not in {d.text for d in result.train + result.held_out}
        digests.append(result.sha256)
    assert digests[0] == digests[1]
    (tmp_path / "two" / "module.py").write_text(SOURCE.replace("Outer text", "Other text"))
    assert corpus.read_corpus(tmp_path / "two").sha256 != digests[0]


def test_a_directory_without_python_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass a standard library"):
        corpus.read_corpus(tmp_path)


# Trigram


def kneser_ney_by_hand(tokens: list[int], size: int, context: tuple[int, int], w: int) -> Fraction:
    """The module's three equations with dictionaries and fractions; discounts are all 1/2."""
    counts3 = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    counts2 = Counter(gram[1:] for gram in counts3)
    counts1 = Counter(gram[1:] for gram in counts2)
    result = Fraction(1, size)
    levels: list[tuple[Counter[Any], tuple[int, ...]]]
    levels = [(counts1, ()), (counts2, context[1:]), (counts3, context)]
    for counts, past in levels:
        followers = {gram: n for gram, n in counts.items() if gram[:-1] == past}
        if followers:
            total = sum(followers.values())
            leftover = Fraction(len(followers), 2) / total
            mass = max(followers.get((*past, w), 0) - Fraction(1, 2), Fraction(0))
            result = mass / total + leftover * result
    return result


def test_trigram_equals_the_equations_in_exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigram, "_discounts", lambda _: np.array([0.0, 0.5, 0.5, 0.5]))
    size = 5
    tokens = np.random.default_rng(1).integers(0, size - 1, 60)  # token 4 never occurs
    model = trigram.fit_trigram(tokens, size)
    grid = [(u, v, w) for u in range(size) for v in range(size) for w in range(size)]
    got = trigram.token_probabilities(
        model, np.array([gram[:2] for gram in grid]), np.array([gram[2] for gram in grid])
    )
    want = [float(kneser_ney_by_hand(tokens.tolist(), size, g[:2], g[2])) for g in grid]
    # Three lines of a handful of roundings each: 16 units of relative error are ample.
    np.testing.assert_allclose(got, want, rtol=16 * EPS64, atol=0)


def test_trigram_probabilities_sum_to_one_in_seen_and_unseen_contexts() -> None:
    size = 50
    tokens = np.random.default_rng(2).zipf(1.5, 4000) % (size - 1)  # token 49 never occurs
    model = trigram.fit_trigram(tokens, size)
    assert min(trigram._discounts(np.unique(tokens, return_counts=True)[1])[1:]) > 0
    for context in (tokens[100:102], [int(tokens[5]), size - 1], [size - 1, size - 1]):
        pairs = np.tile(np.asarray(context), (size, 1))
        total = trigram.token_probabilities(model, pairs, np.arange(size)).sum()
        # A sum of `size` terms, each from three lines of four roundings.
        assert abs(total - 1) <= (size + 12) * EPS64, f"context {context}: sum {total!r}"


def test_trigram_losses_follow_the_stream() -> None:
    tokens = np.random.default_rng(3).integers(0, 6, 200)
    model = trigram.fit_trigram(tokens, 6)
    losses = trigram.token_losses(model, tokens)
    assert losses.shape == (199,)
    direct = trigram.token_probabilities(model, np.array([tokens[6:8]]), np.array([tokens[8]]))
    assert losses[7] == -np.log(direct[0])


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "message"),
    [([0, 1], 4, "at least 3"), ([0, 1, 4], 4, "0..3, got 0..4"), ([0, 1, 2], 2**21, "vocabulary")],
)
def test_trigram_names_what_it_cannot_count(
    tokens: list[int], vocabulary: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trigram.fit_trigram(np.array(tokens), vocabulary)
