"""Exit codes of the command line, the same for every subcommand.

The hazard is a script that cannot tell "worse" from "could not be measured" from "asked wrongly".
"""

#: Fine; precision regression; inconclusive; internal error or interrupted; usage.
OK, REGRESSION, INCONCLUSIVE, INTERNAL, USAGE = range(5)
