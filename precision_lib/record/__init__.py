"""What was measured, on what, under which settings: its types, and its files."""
