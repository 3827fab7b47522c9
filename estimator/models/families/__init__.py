"""Model families: each file, named by its ``model_type``, declares the parameters that transformers 5 makes for it.

A file has a class ``Config``, whose fields are the keys of config.json (`config_fields`). If its forward pass is not
Llama's, a file of the same name stands in `closed_form.decoders`.
"""
