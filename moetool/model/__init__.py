"""The reference and the runner: one engine for every layout and format.

    mixtral.py    the Transformer, float32 where it matters
    load.py       weights by raw name from any checkpoint, within a byte budget
    device.py     which device computes, and what memory it took
    tokenizer.py  text <-> token ids
    generate.py   a prompt in one pass, then token by token
    smoke/        the checks of `moetool smoke-test`

Importing this package loads nothing; its modules load torch.
"""
