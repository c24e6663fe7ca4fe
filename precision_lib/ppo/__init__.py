"""The PPO core: small pure functions, FP32 or better unless a format is asked for on purpose."""
