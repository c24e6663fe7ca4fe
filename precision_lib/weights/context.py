"""What an explanation may look at: all pieces of both sides, older weights, who is equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from precision_lib.weights.findings import Contract
from precision_lib.weights.layout import Piece, Side
from precision_lib.weights.relation import squeezed


@dataclass
class Context:
    """Attributes:
    pairs: what is compared, by shared name. trainer, engine: the pieces of each side.
    equal: shared names of pieces that are equal.
    older: earlier weights of the trainer, the latest first.
    vocabulary: number of tokens by a configuration, None where none says.
    """

    pairs: Mapping[str, tuple[Piece, Piece]]
    older: Sequence[Side]
    contract: Contract
    vocabulary: int | None = None
    equal: set[str] = field(default_factory=set)
    _index: dict[tuple[str, tuple[int, ...]], dict[str, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trainer = {shared: wanted for shared, (wanted, _) in self.pairs.items()}
        self.engine = {shared: given for shared, (_, given) in self.pairs.items()}

    def names_of(self, digest: str | None, fmt: str, shape: tuple[int, ...]) -> list[str]:
        """Shared names of the trainer's tensors with this hash in ``fmt`` and this shape."""
        place = (fmt, squeezed(shape))
        if place not in self._index:
            index: dict[str, list[str]] = {}
            self._index[place] = index
            for shared, piece in self.trainer.items():
                if squeezed(piece.tensor.shape) == place[1] and piece.scale is None:
                    index.setdefault(piece.tensor.digest(fmt) or "", []).append(shared)
        return [] if digest is None else self._index[place].get(digest, [])

    def same_shape(self, shared: str) -> list[str]:
        """Shared names of the trainer's other pieces that have the shape of this one."""
        shape = squeezed(self.trainer[shared].tensor.shape)
        return [
            other
            for other, piece in self.trainer.items()
            if other != shared and squeezed(piece.tensor.shape) == shape and piece.scale is None
        ]

    def taken(self, shared: str, source: str) -> tuple[str, str]:
        """Kind and evidence when the engine's ``shared`` holds the trainer's ``source``."""
        name = self.trainer[source].name
        if source in self.equal:
            return "duplicated", f"holds a copy of {name}, which is also in its own place"
        return "swapped", f"holds the values of {name}"
