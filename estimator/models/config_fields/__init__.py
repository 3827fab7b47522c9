"""What the families' configs share: the fields of a decoder's config.json, their types, and rotary settings."""
