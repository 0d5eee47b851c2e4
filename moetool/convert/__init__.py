"""From one convention and format to another: plans derived from tables, then streamed.

plan.py      two tables in, steps out; ops.py: what a step can do to a matrix
stream.py    run a step, a chunk at a time; casts.py: what its cast changed
here.py      whether all that is read is here, or a part was never fetched
job.py       one conversion from end to end; targets.py: what can be asked for
sidecars.py  config.json, tokenizer files and headers beside the weights
quantised/   a type for each tensor of a GGUF, and rows as blocks of it
arriving/    a conversion of what is still being fetched
dry_run/     what a job would do, also with a source that is not complete yet
execute/     the files, durably: stopped anywhere, the same command goes on
"""
