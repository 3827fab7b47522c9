"""Model families: each file lists the parameters that transformers 5 makes for one ``model_type``."""
