"""H1, KL collapse: noise over signal of the log-ratio near the reference."""
