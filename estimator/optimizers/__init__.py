"""What lorabench knows of each optimizer. A row of `table` is all that it takes to add one.

- `table`: one row for each optimizer, by transformers' name, and why some of transformers' have no row;
- `optimizer`: what a row says;
- `states`: kinds of tensors that optimizers keep between steps;
- `temporaries`: what steps allocate and free again;
- `tensors`: what an optimizer steps through.
"""
