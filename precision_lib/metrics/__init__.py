"""Metrics: what each counts, which way it gets worse, and the law that it follows."""
