"""Where floating-point precision matters in an RLHF pipeline, as numbers that hold.

The package never imports pytest and does no work at import: tests and commands are thin
callers of its functions. Imports run one way, see ``docs/specification.md``.
"""

__version__ = "0.1.0"
