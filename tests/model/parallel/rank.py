"""One rank of a test; the environment says which, the first argument what to do.

python rank.py all OUT PATH  what a pipeline takes that reads the checkpoint at PATH, then every
                             scenario, pipeline and tensor; what came of it into OUT
python rank.py refuse | die  rank 1 fails while the others wait for it
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from scenarios import CPU, MODELS, checkpoint_in, run_all

from moetool.arch.recognize import recognize
from moetool.errors import MoetoolError, NotEnoughMemory, Refused
from moetool.formats import open_checkpoint
from moetool.model.parallel.group import joined
from moetool.model.parallel.open import open_model
from moetool.model.parallel.world import find_world


def say(error):
    print(f"error: {error}", file=sys.stderr, flush=True)


def do(what, ranks, arguments):
    if what == "all":
        found = {"large": take(Path(arguments[1]), ranks), "refused": refused(ranks)}
        for split in ("pipeline", "tensor"):
            found[split] = run_all(replace(ranks, split=split))
        torch.save(found, Path(arguments[0]) / f"{ranks.rank}.pt")
    elif ranks.rank != 1:
        ranks.receive((4,), torch.float32, (ranks.rank - 1) % ranks.size)
    elif what == "refuse":
        raise Refused("this rank does not like it")
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def refused(ranks):
    checkpoint, recognized = checkpoint_in(*MODELS["bf16"][:2])
    budget = 1 << 30 if ranks.rank else 1000
    try:
        open_model(checkpoint, recognized, CPU, None, budget, ranks)
    except NotEnoughMemory as error:
        return str(error), error.findings, len(checkpoint.reads)


def take(path, ranks):
    with open_checkpoint(path) as checkpoint:
        recognized = recognize(checkpoint.catalog, checkpoint.directory)
        model, weights = open_model(checkpoint, recognized, CPU, None, None, ranks)
        model.forward(torch.arange(8), model.new_cache(8))
        weights.close()
        return model.memory()


def main():
    what, *arguments = sys.argv[1:]
    try:
        with joined(find_world(os.environ), "pipeline", "cpu", say) as ranks:
            do(what, ranks, arguments)
    except MoetoolError as error:
        say(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
