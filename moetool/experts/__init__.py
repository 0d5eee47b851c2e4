"""What the router does, and what an expert is worth.

    trace         which experts each token went to, with what weight; live while a text is written
    routing_file  a trace as numpy reads it
    summary       load, balance, pairs and favourites of each layer
    changes       where two models choose otherwise for the same tokens
    what_if       what a cache of experts would make of a trace
    lockstep      matrices of many experts read side by side
    stats         norms, spectra, who is dead or double
    similarity    who is like whom, within a layer and between checkpoints
    masked        a model in which nothing goes to some experts
    saliency      what each expert adds, from one pass
    ablate        what losing experts costs, exactly
    selection     a checkpoint seen with some of its experts, in any order
    rewrite       a selection written, and compared with what was chosen
    extract       one expert as named tensors

Everything here computes with the runner and writes through the conversion; pages and pictures are
the command line's.
"""
