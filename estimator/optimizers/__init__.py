"""The optimizers. To add one, add a row to `table`.

- `table`: one row per optimizer, by transformers' name, and the reasons why others have no row;
- `optimizer`: the fields of a row;
- `states`: kinds of tensors that optimizers keep between steps;
- `temporaries`: the tensors that steps allocate and free;
- `tensors`: the trained tensors.
"""
