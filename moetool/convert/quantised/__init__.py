"""A quantised GGUF: which type each tensor gets, and its rows as blocks of that type.

mixes.py     the mixes of llama-quantize as a table, and what is asked for beside them
recipe.py    a mix, overrides and an importance matrix: what they say of a plan and a header
rows.py      rows in, blocks out, in threads; how far they are from the weights
distance.py  how far they usually are
"""
