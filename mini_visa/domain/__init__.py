"""The payment domain: pure decisions on plain data. No I/O, no clock, no randomness, no Kafka."""
