"""The hypotheses, a row each. Everything else asks this table, and names none of them."""

from precision_lib.forensics.h1.declaration import H1
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h3.declaration import H3
from precision_lib.forensics.h4.declaration import H4
from precision_lib.forensics.h5.declaration import H5
from precision_lib.forensics.h6.declaration import H6
from precision_lib.forensics.hypothesis import Decision, Hypothesis

HYPOTHESES: dict[str, Hypothesis] = {h.name: h for h in (H1, H2, H3, H4, H5, H6)}

#: Those that a sweep of training runs judges, too.
IN_SWEEPS = {name: h for name, h in HYPOTHESES.items() if h.in_sweeps}

#: The decision table: each threshold stands once, with its meaning.
DECISIONS: dict[str, Decision] = {name: h.decision for name, h in HYPOTHESES.items()}
