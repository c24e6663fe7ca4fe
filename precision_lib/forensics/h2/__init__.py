"""H2, reward quantization: what a reward model's format leaves of the advantages."""
