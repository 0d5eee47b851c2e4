"""`moetool experts`: what an expert is like, what it is worth, and checkpoints with other experts.

stats.py       norms, spectra, dead and double ones
similarity.py  who is like whom
ablate.py      what losing one costs; ablate_page.py: the same as a page
prune.py       write a checkpoint with fewer; permute.py: with the same in another order
writing.py     options and steps of both
extract.py     one expert as named tensors
"""

from __future__ import annotations

import typer

from moetool.cli.experts import ablate, extract, permute, prune, similarity, stats

app = typer.Typer(
    name="experts",
    help="Measure, compare, ablate, prune, reorder and extract experts",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("stats")(stats.stats)
app.command("similarity")(similarity.similarity)
app.command("ablate")(ablate.ablate)
app.command("prune")(prune.prune)
app.command("permute")(permute.permute)
app.command("extract")(extract.extract)
