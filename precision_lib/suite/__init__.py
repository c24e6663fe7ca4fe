"""The wheel has ``tests/forensics`` and ``tests/sweep`` here; setup.py puts them there."""
