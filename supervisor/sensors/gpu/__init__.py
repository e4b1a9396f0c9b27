"""GPUs: load, memory, and who uses them."""
