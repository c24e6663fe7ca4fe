"""Models: policy, value head, reward model, loading, and the embedded policy in `embedded`."""
