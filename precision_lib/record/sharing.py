"""Figures that a record would hold twice: written once, and put back when it is read.

The hazard. A figure that is left out and put back from the wrong place is a wrong figure. So what
is written is read back at once, and a cell that does not come out as it was is written in full.

Evidence depends on a few formats, so that many cells hold the same: it stands in the first of them.
``as_in`` of a later cell names that configuration and the parts that are the same there. In
evidence a metric has the name of a metric of its cell; what of it the cell's own says already (the
unit, mostly the count, at the operating point all of it) is left out. What remains is a list of its
first values, ``[value, low, high, n, clusters]`` or less of it, wherever it is no other choice.
"""

import json
from collections.abc import Mapping

from precision_lib.jsonio import Json

#: Evidence with fewer characters is written again in each cell: a reference is as long.
_WORTH_SHARING = 40
#: Keys that every metric has; ``clusters`` may be one more.
_METRIC = {"value", "low", "high", "n", "unit"}
#: Keys of a metric in the order of its list; the unit never differs alone.
_LISTED = ("value", "low", "high", "n", "clusters")
#: Key of a cell whose evidence is written in full.
_FULL = "evidence_in_full"


def shared(cells: list[Json]) -> list[Json]:
    """The cells without what the record holds elsewhere."""
    first_with: dict[tuple[str, str, str], str] = {}
    return [_with_references(_shortened(cell), first_with) for cell in cells]


def resolve(cells: list[Json]) -> None:
    """Put what ``as_in`` names into the evidence of each cell, in place."""
    evidence = {(c["hypothesis"], c["configuration"]): c["evidence"] for c in cells}
    for cell in cells:
        for configuration, names in cell.pop("as_in", {}).items():
            there = evidence[cell["hypothesis"], configuration]
            cell["evidence"] |= {name: there[name] for name in names}


def complete(cells: list[Json]) -> None:
    """Put into the evidence of resolved cells what their own metrics say, in place."""
    for cell in cells:
        if not cell.pop(_FULL, False):
            cell["evidence"] = _put_back(cell["evidence"], cell["metrics"])


def _shortened(cell: Json) -> Json:
    evidence, own = cell["evidence"], cell["metrics"]
    short = _left_out(evidence, own)
    return cell | ({"evidence": short} if _put_back(short, own) == evidence else {_FULL: True})


def _left_out(value: Json, own: Mapping[str, Json], name: str = "") -> Json:
    if isinstance(value, list):
        return [_left_out(item, own) for item in value]
    if not isinstance(value, dict):
        return value
    if name in own and value.keys() == own[name].keys() >= _METRIC:
        return _listed({k: item for k, item in value.items() if not _is_same(item, own[name][k])})
    return {key: _left_out(item, own, key) for key, item in value.items()}


def _listed(differing: Json) -> Json:
    """The values of a metric's first keys as a list; any other choice of keys as it is."""
    keys = _LISTED[: len(differing)]
    return [differing[key] for key in keys] if keys and {*keys} == {*differing} else differing


def _put_back(value: Json, own: Mapping[str, Json], name: str = "") -> Json:
    if isinstance(value, list) and value and name in own:
        return own[name] | dict(zip(_LISTED, value, strict=False))
    if isinstance(value, list):
        return [_put_back(item, own) for item in value]
    if not isinstance(value, dict):
        return value
    if name in own and value.keys() <= own[name].keys() and not value.keys() >= _METRIC:
        return own[name] | value
    return {key: _put_back(item, own, key) for key, item in value.items()}


def _is_same(first: Json, second: Json) -> bool:
    """Whether both are written alike: 0 and 0.0 are not, nor 0.0 and -0.0."""
    return json.dumps(first) == json.dumps(second)


def _with_references(cell: Json, first_with: dict[tuple[str, str, str], str]) -> Json:
    """A cell with references in place of what an earlier cell of its hypothesis holds."""
    own, as_in = {}, dict[str, list[str]]()
    for name, value in cell["evidence"].items():
        text = json.dumps(value)
        there = first_with.setdefault((cell["hypothesis"], name, text), cell["configuration"])
        if there == cell["configuration"] or len(text) < _WORTH_SHARING:
            own[name] = value
        else:
            as_in.setdefault(there, []).append(name)
    return cell | {"evidence": own} | ({"as_in": as_in} if as_in else {})
