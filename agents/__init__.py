"""The services: one module each, source topic -> domain -> tables and topics."""
