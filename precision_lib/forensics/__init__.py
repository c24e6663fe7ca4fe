"""The hypotheses: what is measured for each, the decision, and the statistics behind it."""
