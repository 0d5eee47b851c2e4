"""One model over several processes, on one machine or on more, started by torchrun.

    world.py     where torchrun has put this process
    group.py     the processes come together, pass tensors on, sum them, and leave
    watch.py     a rank that fails takes the others along, and rank 0 says which and why
    ranges.py    which layers each rank has
    pipeline.py  each rank runs its layers and sends the stream on: one process's bits
    slices.py    the rows or columns that a rank keeps of each matrix
    tensor.py    each rank has some heads and a part of every expert: quicker, other sums
    shared.py    what both ways have in common: when a share is read, and what it takes
    open.py      opens a rank's share; refused before it is read where a rank has no room for it

All ranks make the same calls with the same tokens and get the same logits, so whoever calls a
model need not know that there are several. Importing this package loads nothing.
"""
