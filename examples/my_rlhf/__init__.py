"""A small RLHF code base, as an example of one that is put under test."""
