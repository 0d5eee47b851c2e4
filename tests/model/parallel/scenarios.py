"""What a model is asked to do, alone and by several ranks; all of it must come out the same."""

from __future__ import annotations

import torch

from moetool.arch.args import ModelArgs
from moetool.arch.recognize import Recognized
from moetool.arch.schema import expand
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream
from moetool.convert.synthetic import RandomCheckpoint, family
from moetool.model.evaluate import evaluate
from moetool.model.generate import Sampling, generate
from moetool.model.parallel.open import open_model
from moetool.tensors import Catalog

CPU = torch.device("cpu")
# Five layers do not divide by two or four; kv heads, hidden dim and vocabulary do.
ODD = ModelArgs(
    dim=40, n_layers=5, head_dim=16, hidden_dim=56, n_heads=12, n_kv_heads=4, norm_eps=1e-5,
    vocab_size=72, n_experts=5, n_experts_per_tok=2, max_seq_len=256, sliding_window=24,
)  # fmt: skip
DENSE = ModelArgs(
    dim=40, n_layers=4, head_dim=16, hidden_dim=56, n_heads=4, n_kv_heads=4, norm_eps=1e-5,
    vocab_size=72, n_experts=0, n_experts_per_tok=0, max_seq_len=256,
)  # fmt: skip
MODELS = {
    "f32": (ODD, "mistral", torch.float32),
    "bf16": (ODD, "mistral", None),
    "hf": (ODD, "hf-fused", torch.float32),
    "dense": (DENSE, "mistral", torch.float32),
    "dense bf16": (DENSE, "mistral", None),
}


class Watched:
    """A checkpoint in memory that remembers which bytes were read."""

    def __init__(self, catalog, data):
        self.catalog, self.data, self.reads = catalog, data, []

    def read(self, name, start=0, stop=None):
        stop = len(self.data[name]) if stop is None else stop
        self.reads.append((name, start, stop))
        return self.data[name][start:stop]


def checkpoint_in(args, layout_name):
    """Random weights in a layout, and what they are."""
    source, architecture = RandomCheckpoint(args, 0), family(args)
    convention = architecture.convention(layout_name)
    layout = expand(convention, args)
    steps = derive_steps(source.catalog, source.layout, layout, args)
    catalog = Catalog(convention.file_format, {s.target.name: s.target for s in steps}, {})
    data = {s.target.name: b"".join(stream(source, s)) for s in steps}
    return Watched(catalog, data), Recognized(architecture, convention, args, layout)


def run_all(ranks=None):
    """Every model through every scenario."""
    torch.set_num_threads(1)
    return {name: run(*model, ranks) for name, model in MODELS.items()}


def run(args, layout, dtype, ranks):
    """Prompt, cached decoding, several sequences together, drawing, scoring."""
    checkpoint, recognized = checkpoint_in(args, layout)
    model, weights = open_model(checkpoint, recognized, CPU, dtype, None, ranks)
    assert not checkpoint.reads
    found = scenarios(model, args)
    cache = model.new_cache(8)
    found["cache"] = tuple(cache.keys_LKCH.shape)
    found["reads"] = checkpoint.reads
    found["planned"] = weights.nbytes
    if ranks:
        found["memory"] = model.memory()
    weights.close()
    return found


def scenarios(model, args):
    """What a caller sees."""
    random = torch.Generator().manual_seed(1)
    tokens_T = torch.randint(args.vocab_size, (40,), generator=random)
    prompt = model.forward(tokens_T, model.new_cache(40))
    pieces = [tokens_T[:20], *tokens_T[20:30].split(1)]
    cached = model.hidden_of(pieces, [model.new_cache(30)] * len(pieces))
    sequences = [tokens_T[:7], tokens_T[7:8], tokens_T[8:40]]
    together = model.hidden_of(sequences, [model.new_cache(len(s)) for s in sequences])
    cache = model.new_cache(40)
    one_by_one = [model.forward(piece, cache) for piece in tokens_T[:6].split(1)]
    return {
        "prompt": prompt,
        "cached": torch.cat([model.logits(h_TD[-1:]) for h_TD in cached]),
        "together": torch.cat([model.logits(h_TD) for h_TD in together]),
        "one by one": torch.cat(one_by_one),
        "drawn": list(generate(model, tokens_T[:5].tolist(), 12, sampling=Sampling(0.9, seed=3))),
        "loss": evaluate(model, tokens_T.tolist(), 16).score.loss,
    }
