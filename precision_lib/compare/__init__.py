"""Two measurements against each other: what is worse, what is better, what cannot be compared."""
