"""`moetool inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.console import Column, Console, count, size
from moetool.cli.options import JsonOption, PathArgument, QuietOption, resolve
from moetool.errors import Refused

if TYPE_CHECKING:
    from moetool.arch.summary import InspectReport, ModelSummary


def inspect(
    path: PathArgument = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context to count the KV cache for")
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor, nothing collapsed")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a checkpoint is, holds and needs.

    Architecture and layout, parameters, bytes by role, KV cache and memory, from headers alone.
    """
    from moetool.arch.summary import summarize
    from moetool.formats import open_checkpoint

    console = Console(json, quiet)
    with open_checkpoint(resolve(path, console)) as checkpoint:
        files = {file.name: file.stat().st_size for file in checkpoint.files}
        report = summarize(
            checkpoint.catalog,
            checkpoint.directory,
            checkpoint.path,
            files,
            context=context,
            tensors=tensors,
        )
    console.result(report, lambda: _render(console, report))
    if not report.ok:
        raise typer.Exit(Refused.exit_code)


def _render(console: Console, report: InspectReport) -> None:
    facts: list[tuple[str, object]] = [
        ("checkpoint", report.path),
        ("format", f"{report.format}, {_files(report)}"),
        ("beside it", ", ".join(report.side_files) or "nothing"),
    ]
    if report.model is None:
        console.facts(facts)
        console.line(f"not recognised: {report.reason}", "yellow")
    else:
        console.facts([*facts, *_model_facts(report.model)])
        console.line()
        _render_roles(console, report.model)
    console.line()
    if report.tensors:
        rows = [(t.name, t.dtype.label, list(t.shape), size(t.nbytes)) for t in report.tensors]
        console.table(
            [Column("tensor"), Column("dtype"), Column("shape"), Column("size", right=True)], rows
        )
        return
    console.table(
        [Column("tensors"), Column("count", right=True), Column("dtype"), Column("shape"),
         Column("size", right=True)],
        [
            (group.name, f"x{group.count}", group.dtype, list(group.shape), size(group.nbytes))
            for group in report.groups
        ],
    )  # fmt: skip


def _files(report: InspectReport) -> str:
    names = list(report.files)
    what = names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} … {names[-1]}"
    return f"{what}, {report.n_tensors} tensors, {report.nbytes:,} bytes ({size(report.nbytes)})"


def _model_facts(model: ModelSummary) -> list[tuple[str, object]]:
    assumed = model.args["assumed"]
    return [
        ("architecture", model.architecture),
        ("layout", f"{model.convention} ({model.convention_title})"),
        ("parameters", count(model.n_params)),
        ("active", f"{count(model.n_params_active)} for each token"),
        ("one expert", f"{count(model.n_params_expert)} over all layers"),
        ("shared", count(model.n_params_shared)),
        ("router", f"top {model.n_experts_per_tok} of {model.n_experts} experts, softmax"),
        ("hyperparameters", ", ".join(f"{k} {v}" for k, v in _shown(model))),
        ("assumed", ", ".join(assumed) or "nothing"),
        ("context", f"{model.max_seq_len:,} tokens"),
        ("KV cache", f"{size(model.kv_cache_nbytes)} at {model.context:,} tokens in bf16"),
        ("memory to run", ", ".join(f"{k} {size(v)}" for k, v in model.run_nbytes.items())),
    ]


def _render_roles(console: Console, model: ModelSummary) -> None:
    console.table(
        [Column("role"), Column("parameters", right=True), Column("size", right=True),
         Column("dtype")],
        [(r.role, f"{r.n_params:,}", size(r.nbytes), "/".join(r.dtypes)) for r in model.roles],
    )  # fmt: skip


def _shown(model: ModelSummary) -> list[tuple[str, object]]:
    elsewhere = {"n_experts", "n_experts_per_tok", "max_seq_len", "assumed"}
    return [(k, v) for k, v in model.args.items() if k not in elsewhere and v is not None]
