"""Record the architectures of transformers, so that the closed form needs neither it nor torch."""
