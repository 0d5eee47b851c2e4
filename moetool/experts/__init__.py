"""What the router does, and what an expert is worth.

    trace         which experts each token went to, with what weight; live while a text is written

Everything here computes with the runner and writes through the conversion; pages and pictures are
the command line's.
"""
