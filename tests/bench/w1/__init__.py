"""W1 "authorize-core": velocity and balance per card, one decision a request."""
