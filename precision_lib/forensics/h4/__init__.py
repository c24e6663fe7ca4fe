"""H4, reference drift: what the errors of log-probs add up to along a sequence."""
