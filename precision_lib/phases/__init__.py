"""The phases of the study, each a function that a command calls: inputs in, record out."""
