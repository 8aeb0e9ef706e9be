"""The gateway: HTTP in, commands to Kafka, answers back. Stateless; the only place that sees a PAN."""
