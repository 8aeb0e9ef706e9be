"""The tables: what each service remembers, its keys and its codecs."""
