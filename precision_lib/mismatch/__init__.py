"""Which kind of disagreement is it, when a rollout engine and a trainer differ in their log-probs?

Reads files that people have, needs no model and no GPU, and computes in float64 with numpy alone.
The order of the work: reading, alignment, counters, fingerprints, verdict, cost, next experiment.

Everywhere below: d = trainer - rollout log-prob of a sampled token, nats; r = exp(d). N sequences,
T slots of a row, M real tokens of all sequences, one sequence after the other.
"""
