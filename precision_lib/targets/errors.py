"""What is raised when a target cannot be used."""


class TargetError(ValueError):
    """A target cannot be used; the message names it, what is wrong and what to do."""
