"""What a configuration as a whole does to a PPO step: its gradient, its advantages, its clips."""
