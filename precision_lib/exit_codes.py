"""Exit codes of the command line, the same for every subcommand."""

#: Fine; precision regression; inconclusive; internal error or interrupted; usage.
OK, REGRESSION, INCONCLUSIVE, INTERNAL, USAGE = range(5)
