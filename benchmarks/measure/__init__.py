"""How it is measured: time, memory, provenance."""
