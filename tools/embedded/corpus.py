"""The text the embedded model learns from: the documentation inside Python's standard library.

The hazard is leakage. A language model that has seen its test text looks better than it is, and the
standard library repeats itself: `_pydecimal` copies whole docstrings from one class to another,
`ntpath` mirrors `posixpath`, licence notices stand in dozens of files. So the text is split by
*file*, exact repetitions are dropped before the split is used, and a held-out unit that shares a
run of ten words with the training text is dropped as well.

The text depends on the Python version alone: files are read in the order of their paths, and the
split follows a hash of the relative path. The SHA-256 of the result is part of the model's card.

A *unit* is one docstring, one comment block or one help topic. A *document* is what the model
reads between two end-of-text tokens: all docstrings of one top-level definition, one comment
block, or one help topic.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PERCENT = 6
SHINGLE_WORDS = 10
MIN_COMMENT_LINES = 3
TOPICS_FILE = "pydoc_data/topics.py"
UNIT_SEPARATOR = "\n\n"

# Tests, tools with their own prose, generated tables, and anything that was installed on top.
_SKIPPED_PARTS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3"}
    | {"turtledemo", "encodings", "__pycache__", "_bundled", "lib-dynload", "pydoc_data"}
    | {"_distutils_hack"}
)
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True)
class Document:
    """Consecutive units of one file; `path` is relative to the library, with forward slashes."""

    path: str
    units: tuple[str, ...]

    @property
    def text(self) -> str:
        return UNIT_SEPARATOR.join(self.units)


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents, in the order of their paths."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]

    @property
    def sha256(self) -> str:
        return corpus_sha256(self)


def corpus_sha256(corpus: Corpus) -> str:
    """Hash of every split, path and text: equal hashes mean the same training and test text."""
    digest = hashlib.sha256()
    for split, documents in (("train", corpus.train), ("held_out", corpus.held_out)):
        for document in documents:
            for field in (split, document.path, document.text):
                encoded = field.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def is_held_out(path: str, percent: int = HELD_OUT_PERCENT) -> bool:
    """Whether the file at this relative path belongs to the held-out split.

    The help topics are one file with a third of all text, so they always belong to training.
    """
    if path == TOPICS_FILE:
        return False
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:4], "little") % 100 < percent


def source_files(root: Path) -> list[Path]:
    """The library's Python files, sorted by relative path, without tests and generated tables."""

    def wanted(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return not any(p in _SKIPPED_PARTS or p.startswith(_SKIPPED_PREFIXES) for p in parts)

    return sorted(
        (path for path in root.rglob("*.py") if wanted(path)),
        key=lambda path: path.relative_to(root).as_posix(),
    )


def docstring_documents(source: str, path: str) -> list[Document]:
    """One document per top-level definition (and one for the module), in source order."""
    tree = ast.parse(source)
    documents = [Document(path, tuple(_own_docstring(tree)))]
    documents += [Document(path, tuple(_all_docstrings(node))) for node in tree.body]
    return [document for document in documents if document.units]


def _all_docstrings(node: ast.AST) -> Iterator[str]:
    yield from _own_docstring(node)
    for child in ast.iter_child_nodes(node):
        yield from _all_docstrings(child)


def _own_docstring(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=True)
        if docstring and docstring.strip():
            # A lone surrogate, written as an escape, is no text that a tokenizer could encode.
            yield docstring.strip().encode("utf-8", "replace").decode()


def comment_documents(source: str, path: str) -> list[Document]:
    """Blocks of at least `MIN_COMMENT_LINES` consecutive full-line comments, one document each."""
    blocks: list[list[str]] = [[]]
    last_line = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.strip() != token.string.strip():
            continue
        if token.start[0] != last_line + 1:
            blocks.append([])
        blocks[-1].append(re.sub(r"^#+ ?", "", token.string).rstrip())
        last_line = token.start[0]
    texts = ["\n".join(block).strip() for block in blocks if len(block) >= MIN_COMMENT_LINES]
    return [Document(path, (text,)) for text in texts if _is_prose(text)]


def _is_prose(text: str) -> bool:
    """Whether letters and spaces make up most of the text (rulers and tables do not count)."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.8 * max(len(text), 1)


def topic_documents(root: Path) -> list[Document]:
    """The help topics, one document each, read from the source without running it."""
    tree = ast.parse((root / TOPICS_FILE).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [
                Document(TOPICS_FILE, (inspect.cleandoc(text).strip(),))
                for _, text in sorted(topics.items())
            ]
    raise ValueError(f"{TOPICS_FILE} holds no dictionary of topics; check this Python's library")


def unique_units(documents: Iterable[Document]) -> list[Document]:
    """The documents without units already seen, compared without regard to white space."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        units = []
        for unit in document.units:
            key = " ".join(unit.split())
            if key not in seen:
                seen.add(key)
                units.append(unit)
        if units:
            kept.append(Document(document.path, tuple(units)))
    return kept


def shingles(text: str, words: int = SHINGLE_WORDS) -> set[tuple[str, ...]]:
    """Every run of `words` consecutive words, in lower case and without punctuation.

    A shorter text is one run by itself, so that short repetitions are found as well.
    """
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + words]) for i in range(max(len(found) - words + 1, 1))}


def without_leaks(held_out: Iterable[Document], train: Iterable[Document]) -> list[Document]:
    """The held-out documents without units that share a run of words with the training text."""
    candidates = list(held_out)
    wanted = set().union(*(shingles(unit) for document in candidates for unit in document.units))
    leaked: set[tuple[str, ...]] = set()
    for document in train:
        for text in (document.text, *document.units):
            leaked |= wanted & shingles(text)
    kept = []
    for document in candidates:
        units = tuple(unit for unit in document.units if shingles(unit).isdisjoint(leaked))
        if units:
            kept.append(Document(document.path, units))
    return kept


def read_corpus(root: Path | None = None, *, comments: bool = True) -> Corpus:
    """Read, deduplicate and split the documentation of the standard library below `root`.

    `root` defaults to the library of the running interpreter. Raises FileNotFoundError when it
    holds no usable Python file.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    documents: list[Document] = []
    for file in source_files(root):
        path = file.relative_to(root).as_posix()
        with tokenize.open(file) as stream:
            source = stream.read()
        documents += docstring_documents(source, path)
        if comments:
            documents += comment_documents(source, path)
    if not documents:
        raise FileNotFoundError(f"no documented Python files below {root}; pass a standard library")
    if (root / TOPICS_FILE).is_file():
        documents += topic_documents(root)
    documents = unique_units(documents)
    train = [document for document in documents if not is_held_out(document.path)]
    held_out = [document for document in documents if is_held_out(document.path)]
    return Corpus(tuple(train), tuple(without_leaks(held_out, train)))
