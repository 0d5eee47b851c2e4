"""scan: false alarms on healthy checkpoints, and how many injected faults of each kind it finds.

    python benchmarks/scan.py [--seeds 200] [--instances 50] [--part healthy|faults|bits]

Healthy: the trained tiny release in every layout, random weights, heavy tails (Student-t with 4
degrees of freedom), casts, and what block quantisation leaves of values. Faults are put into one
place each, half of them into the trained release, half into random weights with rows as wide as
those of 8x7B. Found means: an error or a warning names the tensor, and the row where it is in one.
Everything is seeded, and all of it is in memory.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moetool.arch.args import ModelArgs
from moetool.arch.mixtral import MISTRAL, MIXTRAL
from moetool.arch.recognize import Recognized, recognize
from moetool.arch.schema import expand
from moetool.arch.spelling import to_params_json
from moetool.convert.plan import derive_steps
from moetool.convert.stream import stream, to_bytes, to_torch, torch_dtype
from moetool.convert.synthetic import GEOMETRIES, RandomCheckpoint
from moetool.formats import open_checkpoint
from moetool.proof.scan import Finding, ScanReport, Severity, scan
from moetool.release.fixture import find_fixture
from moetool.tensors import Catalog, DType, TensorInfo

# Rows as wide as those of 8x7B; fewer of them.
WIDE = ModelArgs(
    dim=4096, n_layers=2, head_dim=128, hidden_dim=384, n_heads=2, n_kv_heads=1, norm_eps=1e-5,
    vocab_size=256, n_experts=3, n_experts_per_tok=2,
)  # fmt: skip
LAYOUTS = ("mistral", "mistral-packed", "hf", "hf-fused", "gguf", "gguf-split")
COUNTED = {Severity.ERROR, Severity.WARNING}
TORN = 4096  # bytes of a damaged range: a page


@dataclass
class Held:
    """A checkpoint in memory that scan takes for one in files."""

    catalog: Catalog
    data: dict[str, bytes]
    directory: Path
    path: Path = Path("memory")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Read bytes of a tensor."""
        return memoryview(self.data[name])[start:stop]


@dataclass(frozen=True)
class Base:
    """Raw bf16 weights, and how to hold them in any type and layout."""

    args: ModelArgs
    infos: dict[str, TensorInfo]
    data: dict[str, bytes]
    directory: Path

    def held(self, changed: dict[str, bytes] | None = None) -> Held:
        """The checkpoint, with some tensors replaced."""
        return Held(Catalog("pth", self.infos, {}), self.data | (changed or {}), self.directory)

    def values(self, name: str) -> torch.Tensor:
        """A copy of the values of a tensor."""
        info = self.infos[name]
        return to_torch(bytearray(self.data[name]), info.dtype, info.shape)

    def mapped(self, dtype: DType, change: Callable[[torch.Tensor], torch.Tensor]) -> Base:
        """Change matrices in f32, and store everything in another type."""
        infos, data = {}, {}
        for name, info in self.infos.items():
            values = self.values(name).float()
            values = change(values) if len(info.shape) > 1 else values
            infos[name] = TensorInfo(name, dtype, info.shape)
            data[name] = bytes(to_bytes(values.to(torch_dtype(dtype))))
        return replace(self, infos=infos, data=data)

    def laid_out(self, convention: str) -> Held:
        """The same weights in another layout."""
        raw, target = expand(MISTRAL, self.args), expand(MIXTRAL.convention(convention), self.args)
        steps = derive_steps(self.held().catalog, raw, target, self.args)
        data = {step.target.name: b"".join(stream(self.held(), step)) for step in steps}
        infos = {step.target.name: step.target for step in steps}
        form = "safetensors" if convention.startswith("hf") else "pth"
        return Held(Catalog(form, infos, {}), data, self.directory)


def random_base(args: ModelArgs, seed: int, folder: Path) -> Base:
    source = RandomCheckpoint(args, seed)
    directory = folder / f"{args.dim}-{args.n_layers}"
    directory.mkdir(exist_ok=True)
    (directory / "params.json").write_text(json.dumps(to_params_json(args)))
    data = {name: bytes(source.read(name)) for name in source.catalog.tensors}
    return Base(args, dict(source.catalog.tensors), data, directory)


def trained_base() -> Base:
    with open_checkpoint(find_fixture().directory) as checkpoint:
        found: Recognized = recognize(checkpoint.catalog, checkpoint.directory)
        infos = dict(checkpoint.catalog.tensors)
        data = {name: checkpoint.read(name) for name in infos}
        return Base(found.args, infos, data, checkpoint.directory)


def heavy_tails(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Student-t of 4 degrees of freedom, with the scale that the matrix has."""
    torch.manual_seed(seed)
    return lambda like: torch.distributions.StudentT(4.0).sample(like.shape) * like.std() / 2**0.5


def quantised(n_levels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What blocks of 32 with one f16 scale leave: 127 levels as in Q8_0, 7 as in Q4_0."""

    def change(values: torch.Tensor) -> torch.Tensor:
        if values.shape[1] % 32:
            return values
        blocks = values.view(-1, 32)
        step = (blocks.abs().amax(1, keepdim=True) / n_levels).half().float()
        return torch.where(step > 0, (blocks / step).round() * step, 0.0).view(values.shape)

    return change


def same(values: torch.Tensor) -> torch.Tensor:
    return values


def healthy(seeds: int, folder: Path) -> Iterator[tuple[str, list[ScanReport]]]:
    """Name of a kind, and the scans of its checkpoints."""
    trained = trained_base()

    def tiny(seed: int) -> Base:
        return random_base(GEOMETRIES["tiny"], seed, folder)

    for layout in LAYOUTS:
        if not layout.startswith("gguf"):
            yield f"trained, {layout}", [scan(trained.laid_out(layout))]
    yield from gguf_scans(folder)
    yield "random", [scan(tiny(seed).held()) for seed in range(seeds)]
    yield (
        "random, rows of 4096",
        [scan(random_base(WIDE, seed, folder).held()) for seed in range(seeds // 10)],
    )
    few = range(seeds // 10)
    bases: dict[str, list[Base]] = {
        "trained": [trained],
        "random": [tiny(seed) for seed in few],
    }
    bases["Student-t"] = [
        base.mapped(DType.BF16, heavy_tails(seed)) for seed, base in enumerate(bases["random"])
    ]
    yield "Student-t, bf16", [scan(base.held()) for base in bases["Student-t"]]
    for name, alike in bases.items():
        for what, change in (
            ("", same),
            (", as Q8_0", quantised(127)),
            (", as Q4_0", quantised(7)),
        ):
            for dtype in (DType.F16, DType.F32):
                made = [scan(base.mapped(dtype, change).held()) for base in alike]
                yield f"{name}{what}, {dtype.label}", made


def gguf_scans(folder: Path) -> Iterator[tuple[str, list[ScanReport]]]:
    """A GGUF carries its hyperparameters, so these are files."""
    from moetool.convert.job import open_source, prepare
    from moetool.convert.targets import find_target

    for layout in ("gguf", "gguf-split"):
        with open_checkpoint(find_fixture().directory) as checkpoint:
            prepare(open_source(checkpoint), find_target("gguf", layout), folder / layout).run()
        with open_checkpoint(folder / layout) as made:
            yield f"trained, {layout}", [scan(made)]


@dataclass(frozen=True)
class Damage:
    """Changed tensors; what must be named: a tensor, and rows where they are known."""

    changed: dict[str, bytes]
    tensor: str
    rows: tuple[int, int] | None = None

    def caught(self, report: ScanReport, severities: set[Severity]) -> bool:
        """Whether a finding that is severe enough names the place."""
        return any(self._names(found) for found in report.findings if found.severity in severities)

    def _names(self, found: Finding) -> bool:
        if found.tensor != self.tensor:
            return False
        if self.rows is None or found.rows is None:
            return self.rows is None
        return found.rows[0] <= self.rows[1] and self.rows[0] <= found.rows[1]


Fault = Callable[[Base, random.Random], Damage]


def matrices(base: Base, word: str = "") -> list[str]:
    """Matrices of the layers, without the router and its few rows, whose name holds a word."""
    return [
        name
        for name, info in base.infos.items()
        if len(info.shape) > 1 and "gate" not in name and "layers" in name and word in name
    ]


def on_values(change: Callable[[torch.Tensor, int, int], None], *, one_row: bool = True) -> Fault:
    """A fault that changes values of one matrix, given a row and a column."""

    def fault(base: Base, chance: random.Random) -> Damage:
        name = chance.choice(matrices(base))
        values = base.values(name)
        row, column = (chance.randrange(size) for size in values.shape)
        change(values, row, column)
        return Damage({name: bytes(to_bytes(values))}, name, (row, row) if one_row else None)

    return fault


def on_bytes(change: Callable[[bytes, random.Random], bytes]) -> Fault:
    """A fault that replaces a page of one matrix."""

    def fault(base: Base, chance: random.Random) -> Damage:
        name = chance.choice(matrices(base))
        data = base.data[name]
        at = chance.randrange(0, len(data) - TORN, 2)
        torn = data[:at] + change(data[at : at + TORN], chance) + data[at + TORN :]
        row_nbytes = base.infos[name].shape[1] * 2
        return Damage({name: torn}, name, (at // row_nbytes, (at + TORN - 1) // row_nbytes))

    return fault


def put(value: float) -> Fault:
    def change(values: torch.Tensor, row: int, column: int) -> None:
        values[row, column] = value

    return on_values(change)


def fill_row(value: float) -> Fault:
    def change(values: torch.Tensor, row: int, _column: int) -> None:
        values[row] = value

    return on_values(change)


def scale_row(factor: float) -> Fault:
    def change(values: torch.Tensor, row: int, _column: int) -> None:
        values[row] *= factor

    return on_values(change)


def scale_tensor(factor: float) -> Fault:
    return on_values(lambda values, _row, _column: values.mul_(factor), one_row=False)


def through_f16(values: torch.Tensor, _row: int, _column: int) -> None:
    values.copy_(values.half())


def swapped(base: Base, chance: random.Random) -> Damage:
    """A matrix whose bytes are in the other order."""
    name = chance.choice(matrices(base))
    wrong = bytearray(base.data[name])
    wrong[0::2], wrong[1::2] = wrong[1::2], wrong[0::2]
    return Damage({name: bytes(wrong)}, name)


def other_rows(base: Base, chance: random.Random) -> Damage:
    """Rows overwritten by rows of another matrix of the same width."""
    name = chance.choice(matrices(base, "w1"))
    other = chance.choice([one for one in matrices(base, "w3") if one != name])
    data, size = base.data[name], base.infos[name].shape[1] * 2
    at = chance.randrange(base.infos[name].shape[0] - 8) * size
    block = slice(at, at + 8 * size)
    torn = data[: block.start] + base.data[other][block] + data[block.stop :]
    return Damage({name: torn}, name, (at // size, at // size + 7))


def dead_expert(base: Base, chance: random.Random) -> Damage:
    name = chance.choice(matrices(base, "w1"))
    names = [name.replace("w1", word) for word in ("w1", "w2", "w3")]
    return Damage({one: bytes(len(base.data[one])) for one in names}, name)


def twin_expert(base: Base, chance: random.Random) -> Damage:
    """An expert written over a later one of the same layer."""
    layer, last = chance.randrange(base.args.n_layers), base.args.n_experts - 1
    path = f"layers.{layer}.feed_forward.experts."
    source = chance.randrange(last)
    names = {w: f"{path}{last}.{w}.weight" for w in ("w1", "w2", "w3")}
    changed = {name: base.data[f"{path}{source}.{w}.weight"] for w, name in names.items()}
    return Damage(changed, names["w1"])


def router(change: Callable[[torch.Tensor, int], None]) -> Fault:
    def fault(base: Base, chance: random.Random) -> Damage:
        name = f"layers.{chance.randrange(base.args.n_layers)}.feed_forward.gate.weight"
        values = base.values(name)
        row = chance.randrange(1, len(values))
        change(values, row)
        return Damage({name: bytes(to_bytes(values))}, name, (row, row))

    return fault


def silence(values: torch.Tensor, row: int) -> None:
    values[row] = 0


def repeat(values: torch.Tensor, row: int) -> None:
    values[row] = values[row - 1]


def norms(change: Callable[[torch.Tensor, int], None]) -> Fault:
    def fault(base: Base, chance: random.Random) -> Damage:
        name = chance.choice([name for name in base.infos if "_norm" in name])
        values = base.values(name)
        change(values, chance.randrange(len(values)))
        return Damage({name: bytes(to_bytes(values))}, name)

    return fault


def negate(values: torch.Tensor, at: int) -> None:
    values[at] *= -1


def enlarge(values: torch.Tensor, _at: int) -> None:
    values *= 64


def text(old: bytes, chance: random.Random) -> bytes:
    return "".join(chance.choices("the quick brown fox jumps ", k=len(old))).encode()


FAULTS: dict[str, Fault] = {
    "one NaN": put(float("nan")),
    "one infinity": put(float("inf")),
    "one value of 50": put(50.0),
    "a row of zeros": fill_row(0),
    "a constant row": fill_row(0.01),
    "a page of zeros": on_bytes(lambda old, _chance: bytes(len(old))),
    "a page of text": on_bytes(text),
    "a page of random bytes": on_bytes(lambda old, chance: chance.randbytes(len(old))),
    "a page moved by one byte": on_bytes(lambda old, _chance: old[1:] + old[:1]),
    "8 rows of another matrix": other_rows,
    "a row times 16": scale_row(16),
    "a row times 1/16": scale_row(1 / 16),
    "a row times 4": scale_row(4),
    "a matrix times 16": scale_tensor(16),
    "a matrix times 1/16": scale_tensor(1 / 16),
    "a matrix times 2": scale_tensor(2),
    "a matrix of zeros": scale_tensor(0),
    "a matrix in the other byte order": swapped,
    "a matrix cast to f16 and back": on_values(through_f16, one_row=False),
    "a dead expert": dead_expert,
    "an expert twice": twin_expert,
    "a router row of zeros": router(silence),
    "a router row twice": router(repeat),
    "a negative value in a norm": norms(negate),
    "a norm times 64": norms(enlarge),
}


def flip(bit: int) -> Fault:
    """One bit of one bf16."""

    def change(values: torch.Tensor, row: int, column: int) -> None:
        bits = values.view(torch.int16)
        mask = 1 << bit if bit < 15 else -(1 << 15)
        bits[row, column] = int(bits[row, column]) ^ mask

    return on_values(change)


def bits() -> dict[str, Fault]:
    """A fault for each bit of a bf16."""
    names = {15: "sign", **{7 + n: f"exponent, 2^{n} (factor 2^{2**n})" for n in range(8)}}
    return {f"bit {bit}: {names.get(bit, 'fraction')}": flip(bit) for bit in range(15, -1, -1)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--part", choices=("healthy", "faults", "bits"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.part in {None, "healthy"}:
            print("| healthy checkpoints | how many | errors | warnings | notes |")
            print("|---|---|---|---|---|")
            for kind, reports in healthy(options.seeds, folder):
                tell_healthy(kind, reports)
        bases = [trained_base(), random_base(WIDE, 0, folder)]
        if options.part in {None, "faults"}:
            tell_faults("fault", FAULTS, bases, options.instances)
        if options.part in {None, "bits"}:
            tell_faults("one bit of one value", bits(), bases, options.instances)


def tell_healthy(kind: str, reports: list[ScanReport]) -> None:
    counts = [sum(report.counts[s.value] for report in reports) for s in Severity]
    print(f"| {kind} | {len(reports)} | {' | '.join(map(str, counts))} |", flush=True)
    for code in sorted({f.code for r in reports for f in r.findings if f.severity in COUNTED}):
        print(f"  {kind}: {code}")


def tell_faults(title: str, faults: dict[str, Fault], bases: list[Base], n: int) -> None:
    print(f"\n| {title} | instances | found | of these as errors |")
    print("|---|---|---|---|")
    for name, fault in faults.items():
        chance, any_, errors = random.Random(name), 0, 0
        for index in range(n):
            base = bases[index % len(bases)]
            damage = fault(base, chance)
            report = scan(base.held(damage.changed))
            any_ += damage.caught(report, COUNTED)
            errors += damage.caught(report, {Severity.ERROR})
        print(f"| {name} | {n} | {any_ / n:.0%} | {errors / n:.0%} |", flush=True)


if __name__ == "__main__":
    main()
