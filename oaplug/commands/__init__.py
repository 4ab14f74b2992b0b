"""One short file per command: parse, call, say where the result is."""
