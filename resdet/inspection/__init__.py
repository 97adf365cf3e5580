"""A look at the user's data and results."""
