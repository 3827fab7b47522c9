"""Run recorded programs of torch functions on sizes, on the tape of the closed form."""
