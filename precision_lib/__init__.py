"""Measures where low floating-point precision damages RLHF training.

The package never imports pytest and does no work at import: tests and commands are thin
callers of its functions. Imports run one way, see ``docs/specification.md``.
"""

__version__ = "0.1.0"
