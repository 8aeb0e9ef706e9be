"""The read model's schema, step by step. See docs/readmodel.md for how to add a step."""
