"""What a call should cost: multiply-adds, bytes, cache misses, rooflines."""
