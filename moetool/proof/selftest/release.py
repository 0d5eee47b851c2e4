"""The sound subjects, and fresh copies of them to be spoilt.

release        the tiny release beside its .torrent: every file has a publisher's digest
hf  gguf       converted, with the manifest that convert writes
resumed        the same after an interruption, with a shard that was spoilt in the meantime
bare-…         without a RELEASE, a torrent or a manifest: nothing to check against
renumbered     bare, the experts in another order and the router's rows with them
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from moetool.arch.schema import Role, Slot, expand
from moetool.convert.execute.folder import work_folder
from moetool.convert.execute.journal import read_journal
from moetool.convert.execute.manifest import MANIFEST
from moetool.convert.execute.run import Manner
from moetool.convert.job import Source, open_source, prepare
from moetool.convert.targets import find_target
from moetool.errors import Interrupted
from moetool.formats import open_checkpoint
from moetool.proof.selftest.edit import flip
from moetool.proof.selftest.model import Model
from moetool.release.fixture import NAME, Fixture

SHARD_NBYTES = 6_000_000  # three files, so that they can be confused
LAYOUTS = {
    "bare-hf": "hf",
    "bare-fused": "hf-fused",
    "bare-gguf": "gguf",
    "bare-packed": "mistral-packed",
}

Damage = Callable[[Path], None]
Change = Callable[[Model], None]


class Bench:
    """A folder to work in: ``good`` is the sound release, and there is one spoilt copy at a time.

    Attributes:
        good: the folder of the sound release.
        subjects: the sound subjects by name, each with the path that a user would give.
    """

    def __init__(self, work: Path, fixture: Fixture) -> None:
        self._sound, self._spoilt = work / "sound", work / "spoilt"
        self.good = self._room("release", NAME)
        shutil.copytree(fixture.directory, self.good)
        shutil.copy(fixture.torrent, self.good.with_name(f"{NAME}.torrent"))
        bare = self._room("bare-pth")
        shutil.copytree(fixture.directory, bare, ignore=shutil.ignore_patterns("RELEASE"))
        self.subjects = {
            "release": self.good,
            "hf": self._convert("hf", "hf", SHARD_NBYTES),
            "gguf": self._convert("gguf", "gguf"),
            "resumed": self._resume(self._room("resumed"), _spoil_finished),
            "bare-pth": bare,
            "bare-hf-shards": self._convert("bare-hf-shards", "hf", SHARD_NBYTES),
            **{name: self._convert(name, layout) for name, layout in LAYOUTS.items()},
            "renumbered": self._write(self._room("renumbered"), "hf", _renumber),
        }

    def copy(self, name: str) -> Path:
        """A fresh copy of a sound subject; the spoilt one before it is gone."""
        self.clear()
        path = self.subjects[name]
        shutil.copytree(path.parent, self._spoilt / name)
        return self._spoilt / name / path.name

    def write(self, name: str, change: Change) -> Path:
        """Write the weights after a change as one of the bare subjects is written."""
        self.clear()
        out = self._spoilt / name / name
        out.parent.mkdir(parents=True)
        return self._write(out, LAYOUTS[name], change)

    def resume(self, damage: Damage) -> Path:
        """Interrupt a conversion, damage its unfinished folder, and let it go on."""
        self.clear()
        out = self._spoilt / "resumed" / "resumed"
        out.parent.mkdir(parents=True)
        return self._resume(out, damage)

    def clear(self) -> None:
        """Remove the spoilt copy."""
        shutil.rmtree(self._spoilt, ignore_errors=True)

    def _room(self, subject: str, name: str | None = None) -> Path:
        """The folder of a sound subject, alone in one of its own."""
        folder = self._sound / subject / (name or subject)
        folder.parent.mkdir(parents=True)
        return folder

    def _convert(self, name: str, layout: str, max_shard_nbytes: int | None = None) -> Path:
        out = self._room(name)
        with open_checkpoint(self.good) as checkpoint:
            prepare(open_source(checkpoint), find_target(None, layout), out, max_shard_nbytes).run()
        if name.startswith("bare-"):
            (out / MANIFEST).unlink()
        return out

    def _write(self, out: Path, layout: str, change: Change) -> Path:
        with open_checkpoint(self.good) as checkpoint:
            source = open_source(checkpoint)
            model = Model(checkpoint, source.recognized, source.tokenizer)
            change(model)
            stored = expand(source.recognized.architecture.raw, model.args)
            recognized = replace(source.recognized, args=model.args, layout=stored)
            spoilt = Source(model, recognized, self.good, model.tokenizer)
            prepare(spoilt, find_target(None, layout), out).run(manner=Manner(readback=False))
        (out / MANIFEST).unlink()
        return out

    def _resume(self, out: Path, damage: Damage) -> Path:
        unfinished = work_folder(out)

        def stop(_done: int, _note: str) -> None:
            if read_journal(unfinished).shards:
                raise KeyboardInterrupt

        with open_checkpoint(self.good) as checkpoint:
            job = prepare(open_source(checkpoint), find_target(None, "hf"), out, SHARD_NBYTES)
            with suppress(Interrupted):
                job.run(stop)
            damage(unfinished)
            job.run()
        return out


def _spoil_finished(unfinished: Path) -> None:
    """A bit of a finished shard, of which the journal knows better: convert has to do it again."""
    record = next(iter(read_journal(unfinished).shards.values()))
    flip(unfinished / record.file_name, record.nbytes // 2)


def _renumber(model: Model) -> None:
    """Experts in another order, the router's rows with them: the same function."""
    for router in list(model.slots(Role.ROUTER)):
        order = [*range(1, model.args.n_experts), 0]
        for role in (Role.W1, Role.W2, Role.W3):
            held = [model[Slot(role, router.layer, expert)] for expert in order]
            for expert, tensor in enumerate(held):
                model[Slot(role, router.layer, expert)] = tensor
        model[router] = model[router][order]
