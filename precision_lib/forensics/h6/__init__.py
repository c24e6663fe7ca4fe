"""H6, update absorption: a step of the optimizer that the weights' format cannot hold is lost."""
