"""Persistent memory, and the memory beyond the tensors: allocator, workspaces, CUDA context."""
