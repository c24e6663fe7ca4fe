"""PPO training of one precision configuration: rollout, update, diagnostics, failures, state."""
