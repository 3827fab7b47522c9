"""The fine-tuning methods: each declares what it trains, and its forward pass is in the closed form's `adapters`."""
