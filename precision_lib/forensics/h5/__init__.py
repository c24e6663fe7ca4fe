"""H5, rollout mismatch: the engine that samples reports other log-probs than the trainer's."""
