"""`moetool serve`: a checkpoint behind the OpenAI API, and a page that shows its experts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from moetool.cli.console import Console, safe
from moetool.cli.options import JsonOption, PathArgument, QuietOption, parse_size, resolve
from moetool.cli.running import (
    ComputeOption,
    DeviceOption,
    MemoryOption,
    Running,
    be_patient,
    running,
    say_outlook,
)
from moetool.errors import UsageFault
from moetool.reports import plain

if TYPE_CHECKING:
    from moetool.serve.server import Service
    from moetool.serve.subject import Subject

USUAL_PORT = 8663  # MOE on the keys of a telephone, and 3
PLANNED_TOKENS = 4096  # what memory is planned for before it begins
ENDED = 128  # a process that a signal ended leaves with this and its number


@dataclass(frozen=True, slots=True)
class ServeReport:
    """Where it listens; ``url`` opens the page, ``api`` and ``token`` are for clients."""

    schema: ClassVar[str] = "moetool.serve"
    version: ClassVar[int] = 1

    url: str
    api: str
    token: str
    models: tuple[str, ...]
    chat: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """It listens."""
        return True


def serve(
    path: PathArgument = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A second checkpoint: the page shows both on the same prompt and seed",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0: any that is free")
    ] = USUAL_PORT,
    device: DeviceOption = "auto",
    dtype: ComputeOption = "keep",
    memory: MemoryOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve a checkpoint on this machine: the OpenAI API, and a page that shows its experts.

    Listens on 127.0.0.1 only, and answers who knows the token of the address that is printed. One
    text is written at a time, others wait. Ctrl-C ends it.
    """
    _needs_extra()
    console = Console(json, quiet)
    paths = [resolve(path, console), *([resolve(against, console)] if against else [])]

    from moetool.serve.listening import listen

    # The port first: it is had in no time, and a model may take a while to open.
    listening = listen(port)
    with (
        listening,
        _service(console, paths, device, dtype, memory, listening.getsockname()[1]) as (service),
    ):
        from moetool.serve.server import run

        report = _report(service)
        console.result(report, lambda: _render(console, report))
        ended = run(service, listening)
    console.note(f"ended, {service.lane.n_done} requests")
    if ended != signal.SIGINT:
        raise typer.Exit(ENDED + ended)


def _needs_extra() -> None:
    """Say what is missing before anything is opened.

    Raises:
        UsageFault: the packages of the extra are not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageFault(
            f"serving needs {' and '.join(missing)}", hint="pip install 'moetool[serve]'"
        )


@contextmanager
def _service(
    console: Console, paths: list[Path], device: str, dtype: str, memory: str | None, port: int
) -> Iterator[Service]:
    """The models, opened, and the application over them."""
    import secrets
    import traceback

    be_patient()
    share = _share(memory, device, len(paths))
    with ExitStack() as opened:
        subjects: dict[str, Subject] = {}
        for path in paths:
            subject = _subject(opened.enter_context(running(path, device, dtype, share)), subjects)
            positions = min(PLANNED_TOKENS, subject.context)
            say_outlook(console, subject.model, positions, positions)
            subjects[subject.name] = subject

        from moetool.serve.server import Service

        def on_bug(error: BaseException) -> None:
            console.warn(f"internal error: {safe(repr(error))}; please report it")
            if os.environ.get("MOETOOL_DEBUG"):
                traceback.print_exception(error)

        service = Service(subjects, secrets.token_hex(20), port, on_bug)
        opened.callback(service.close)
        yield service


def _share(memory: str | None, device: str, n_models: int) -> str | None:
    """What the weights of one model may take, where several share a device."""
    if n_models == 1:
        return memory
    from moetool.model.device import available_nbytes, pick_device

    budget = parse_size(memory, "--memory") or available_nbytes(pick_device(device))
    return str(max(1, budget // n_models))


def _subject(opened: Running, others: dict[str, Subject]) -> Subject:
    """An opened checkpoint by a name that no other has, and what `inspect` says of it."""
    from moetool.arch.summary import summarize
    from moetool.convert.chat_template import read_chat_template
    from moetool.serve.subject import Subject

    checkpoint = opened.checkpoint
    name = checkpoint.path.resolve().name
    sizes = {path.name: source.nbytes for path, source in checkpoint.sources.items()}
    seen = summarize(checkpoint.catalog, checkpoint.directory, checkpoint.path, sizes)
    return Subject(
        name=f"{name} (B)" if name in others else name,
        model=opened.model,
        tokenizer=opened.speaking(),
        card=plain(replace(seen, path=Path(name))),
        template=read_chat_template(checkpoint.directory, checkpoint.catalog.metadata),
    )


def _report(service: Service) -> ServeReport:
    origin = f"http://127.0.0.1:{service.port}"
    return ServeReport(
        url=f"{origin}/#token={service.token}",
        api=f"{origin}/v1",
        token=service.token,
        models=tuple(service.subjects),
        chat=tuple(name for name, s in service.subjects.items() if s.template is not None),
    )


def _render(console: Console, report: ServeReport) -> None:
    console.facts(
        [
            ("page", report.url),
            ("api", report.api),
            ("api key", report.token),
            ("models", ", ".join(report.models)),
        ]
    )
    if not report.chat:
        console.note(
            "no chat template, as in every raw release: /v1/completions is there, chat not"
        )
    console.note("Ctrl-C ends it")
