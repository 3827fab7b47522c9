"""The parts that families' configs share: a decoder's fields, their types, and rotary settings."""
