"""Makes ``tests`` this package: some wheels (verl's) install a top-level ``tests`` of their own."""
