"""From the public post of a Mixture-of-Experts checkpoint to weights you can prove and run.

magnet ─Magnet→ release ─files→ formats ─Catalog→ arch ─Convention→ convert.plan ─Plan→
    convert.execute ─Sink→ formats → files
Checkpoint.read(name) → model ─SmokeReport→ cli       Checkpoint.read(name) → proof → cli

errors.py     the exception tree; each branch has its exit code
extents.py    ranges of bytes, where they are read from, what is claimed of them
durable.py    locks, synced names, one rename
files/        one door to files: whole, in parts, or with holes
tensors.py    DType, TensorInfo, Catalog, Checkpoint, Sink
reports.py    results as data -> JSON
release/      what was published, how to get it, whether we have it
formats/      files <-> named tensors
arch/         what the tensors mean: names, layouts, shapes as data
quant/        block codecs of GGUF
convert/      from one convention and format to another
model/        the reference and the runner
proof/        is it the same model, and where exactly is it not
experts/      what the router does, and what an expert is worth
serve/        the local server and its one-page playground
cli/          one module per command, named as it is typed
"""

__version__ = "0.1.0.dev0"
