"""Hypothesis profiles: ``ci`` draws the same examples in every run, ``explore`` new and many."""

from hypothesis import settings

from precision_lib.conformance import profiles

settings.register_profile("ci", profiles.CI)
settings.register_profile("explore", profiles.EXPLORE)
settings.load_profile("ci")
