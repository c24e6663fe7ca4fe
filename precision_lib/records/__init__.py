"""The experiment record: what was measured, on what, under which settings."""
