"""Is this checkpoint the model it says it is, and does it work? Checks first, text after.

checks.py         Check, Verdict, SmokeReport: what is said
subject.py        what the checks look at, and the known release it may be
text.py           the shipped text that is run
config.py         L0: hyperparameters, shapes, tokenizer; no weight is read
bits.py           L1: every tensor once, as bits
lockstep.py       two models part by part on the same input
against.py        L2: beside the source, with what that says of settings and values
behaviour.py      L3: loss, cache, layers, routing over the text
needle.py         L3: keys hidden in long texts
golden.py         L3: what was recorded once, to the last bit or within a band
golden_file.py    such results in a file, which may be a stranger's
fingerprint.py    what decides the last bit beside weights and tokens
logits.py         L4: beside the logits of another engine
npy.py            those logits in a file
engines.py        another engine that is installed here
client.py         that engine, in a process of its own
continuations.py  text for people
run.py            SmokeTest: all of it in order
"""

from moetool.model.smoke.checks import Check, Continuation, LayerView, SmokeReport, Verdict
from moetool.model.smoke.run import SmokeTest

__all__ = ["Check", "Continuation", "LayerView", "SmokeReport", "SmokeTest", "Verdict"]
