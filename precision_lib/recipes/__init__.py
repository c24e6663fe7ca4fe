"""Which formats are cheap, which do no damage, and how each framework is told to use them."""
