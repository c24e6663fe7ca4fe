"""Measures where low floating-point precision damages RLHF training.

Only ``plugin`` imports pytest, and nothing does any work at import: tests and commands are thin
callers of the package's functions. Imports run one way, see ``docs/specification.md``.
"""

__version__ = "0.1.0"
