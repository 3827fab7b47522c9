"""The fine-tuning methods. Each declares its trained tensors; its forward pass is in `closed_form.adapters`."""
