"""GPUs: from the catalogue, as a memory size only, or this machine's own."""
