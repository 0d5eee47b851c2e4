"""What the router does, and what an expert is worth.

    trace         which experts each token went to, with what weight; live while a text is written
    routing_file  a trace as numpy reads it
    summary       load, balance, pairs and favourites of each layer
    changes       where two models choose otherwise for the same tokens
    what_if       what a cache of experts would make of a trace

Everything here computes with the runner and writes through the conversion; pages and pictures are
the command line's.
"""
