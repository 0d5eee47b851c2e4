"""Is this checkpoint the model it says it is, and does it work? Checks first, text after.

checks.py     Check, Verdict, SmokeReport: what is said
subject.py    what the checks look at, and the known release it may be
config.py     L0: hyperparameters, shapes, tokenizer; no weight is read
bits.py       L1: every tensor once, as bits
lockstep.py   two models part by part on the same input
against.py    L2: beside the source, with what that says of settings and values
behaviour.py  L3: loss, cache, layers, routing over a shipped text
run.py        SmokeTest: all of it in order
"""

from moetool.model.smoke.checks import Check, LayerView, SmokeReport, Verdict
from moetool.model.smoke.run import SmokeTest

__all__ = ["Check", "LayerView", "SmokeReport", "SmokeTest", "Verdict"]
