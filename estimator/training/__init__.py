"""The real training code: model, loss, optimizer and step of a recipe, on meta tensors, the CPU or a GPU."""
