"""Conformance of a PPO core: adversarial input, the checks, and whose core is under test."""
