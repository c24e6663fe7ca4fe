"""The full sweep: configurations x seeds as independent processes, and what they say together."""
