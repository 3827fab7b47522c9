"""Model families. Each file has the name of its ``model_type``, and declares the parameters that transformers 5 makes.

A file has a class ``Config``, whose fields are the keys of config.json (`config_fields`). If its forward pass is not
Llama's, `closed_form.decoders` has a file of the same name.
"""
