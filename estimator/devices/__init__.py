"""GPUs: of the catalogue, a bare memory size, or this machine's own."""
