"""The reference and the runner: one model for every layout and format.

    mixtral.py    the Transformer, float32 where it matters
    cache.py      keys and values of a sequence, and where the rows of a call stand among them
    kernels.py    products with a matrix: the way that this CPU is quickest at
    compiled.py   products of a few rows by numba, where it is installed
    packed.py     a matrix that stays in blocks of q8_0
    load.py       weights by raw name from any checkpoint, within a byte budget, read ahead
    outlook.py    what a run will take, before it starts
    device.py     which device computes, and what memory it took
    tokenizer.py  text <-> token ids
    generate.py   a prompt in one pass, then token by token
    evaluate.py   the loss on a text, the distance between two models
    imatrix.py    what every matrix is multiplied with on a text, for a quantiser
    smoke/        the checks of `moetool smoke-test`
    parallel/     a model shared by the ranks of torchrun: layers, or heads and experts
    fast/         engines for GPUs: captured graphs, grouped products, expert slots

Importing this package loads nothing; its modules load torch.
"""
