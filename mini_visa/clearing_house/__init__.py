"""The clearing house, which stands for the outside world, and the connector that talks to it."""
