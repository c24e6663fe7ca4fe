"""How the embedded policy, reward model and value head are made from the standard library."""
