"""Mini-Visa: an event-sourced card payment core on Faust streams."""

__version__ = "0.1.0"
