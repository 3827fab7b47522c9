"""The closed form and the trace: models, recipes, devices, memory."""
