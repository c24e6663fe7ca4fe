"""Sequences sampled once in FP32, to be measured under every configuration."""
