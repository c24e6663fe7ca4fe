"""Pictures of what was measured, one topic per file; each comes with its caption and its table."""
