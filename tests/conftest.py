"""Hypothesis profiles: ``ci`` draws the same examples in every run, ``explore`` new and many."""

from hypothesis import settings

from precision_lib.conformance import runner

settings.register_profile("ci", runner.CI)
settings.register_profile("explore", runner.EXPLORE)
settings.load_profile("ci")
