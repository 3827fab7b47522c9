"""Recipes from the configs of other tools, and configs for them from recipes.

`sources` reads a file and recognises its tool by content. Each tool has one module with one table, `KEYS`: every key of
the tool's config, with the type of its value, the tool's own default, and what becomes of it:

* ``used``: a rule turns the value into recipe options;
* ``without effect`` on memory and speed of a step;
* ``not taken into account``: the recipe cannot say it yet. The answer names the key, and what it changes;
* ``refused``: an answer without it would be about another training.

A key that is in no table is not taken into account either, with the nearest name that is. So nothing is dropped
silently. A tool's defaults apply to keys that a file leaves out, and options on the command line override both.
`exported` writes the same keys back from a recipe.

The tables were read in the versions of the tools that `Tool.read_in` names. A new value of a recipe option, such as
another state after preparation for k-bit training, is one entry in `shared_rules`.
"""
