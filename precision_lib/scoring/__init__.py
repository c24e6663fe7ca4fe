"""One scorer: what fixed tokens get from a model with given weights, in given formats."""
