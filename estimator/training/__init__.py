"""The real training code of a recipe: model, loss, optimizer and step, on meta tensors, the CPU or a GPU."""
