"""Mixtures on a GPU: the reference's maths, arranged for speed.

    engine.py     which engine runs a checkpoint

    all weights fit (resident)         only the rest fits (offloaded)
    stacked.py    experts side by side     offloaded.py  where each chosen expert is computed
    resident.py   a prompt                 rates.py      move an expert, or its rows to the CPU
    grouped.py    its experts, sorted      slots.py      places for experts on the device
    step.py       one token                feed.py       the way there: pinned buffers, a thread
    decoder.py    one token after another
    repeat.py     compiled, recorded
    ahead.py      read from behind
    int8.py       half the bytes

    copies.py     the seam to the device's queues, for both
    agreement.py  whether two engines are the same model

The reference (`moetool.model.mixtral`) stays what two checkpoints are compared on, to the last bit.
"""
