"""Which type each tensor of a quantised GGUF gets: the mixes of llama-quantize, as a table.

A mix gives every matrix its base type, but for those in which few more bits buy much: the values
that all queries of a group share, the last matrix of a feed-forward in the first and last layers,
the output. A cell of the table maps conditions to types, the first that holds decides, and where
none does the matrix has the base type:

    Mix("q4_k_m", Q4_K, 15, wv={MORE: Q6_K}, wo={EIGHT: Q5_K}, w2={MORE: Q6_K})

What is asked for goes before the mix, and a row that fills no whole blocks after it:

    --embedding-type, --output-type > --tensor-type, first match > --pure, mix > FALLBACKS

Norms and the router stay f32. The experts of a layer are one tensor, so they have one type.
Source: ggml-org/llama.cpp: src/llama-quant.cpp (types, counters, fallbacks), src/models/llama.cpp
(what is a 70B), include/llama.h (llama_ftype).
"""

# ruff: noqa: PLR2004  # the numbers are the rules
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from moetool.arch.mistral import DENSE_GGUF
from moetool.arch.mixtral import GGUF, GGUF_SPLIT
from moetool.arch.schema import Role
from moetool.errors import UsageFault
from moetool.tensors import DType

if TYPE_CHECKING:
    from moetool.arch.args import ModelArgs

Override = tuple[str, DType]
Shape = tuple[int, ...]


class When(Enum):
    """A condition on a tensor; layers are counted from 0 to ``n``."""

    EIGHT_EXPERTS = auto()  # exactly 8, as in 8x7B and 8x22B
    GROUPS_OF_4 = auto()  # at least 4 queries share a key and a value
    STACKED = auto()  # a tensor that holds several experts
    FIRST_2 = auto()
    FIRST_4 = auto()
    FIRST_SIXTEENTH = auto()  # layer < n/16
    FIRST_EIGHTH = auto()  # layer < n/8
    FIRST_EIGHTH_WEIGHED = auto()  # the same, where an importance matrix is given
    MORE = auto()  # the first eighth, the last eighth, and every third layer between
    ELSE = auto()  # always


Rules = Mapping[When, DType]


@dataclass(frozen=True, slots=True)
class Mix:
    """One mix: its base type, its number in ``general.file_type``, and what differs from the base.

    Roles that are not named follow ``others``, which is the base in all mixes but one.
    """

    name: str
    base: DType
    file_type: int
    wv: Rules = field(default_factory=dict)
    wo: Rules = field(default_factory=dict)
    w2: Rules = field(default_factory=dict)
    output: DType = DType.Q6_K
    others: Rules = field(default_factory=dict)

    def rules(self, role: Role) -> Rules:
        """The cell of a role."""
        if role is Role.OUTPUT:
            return {When.ELSE: self.output}
        return {Role.WV: self.wv, Role.WO: self.wo, Role.W2: self.w2}.get(role, self.others)


Q8_0, Q6_K, Q5_K, Q4_K, Q3_K = DType.Q8_0, DType.Q6_K, DType.Q5_K, DType.Q4_K, DType.Q3_K
Q5_1, Q5_0, Q4_1, Q4_0, Q2_K = DType.Q5_1, DType.Q5_0, DType.Q4_1, DType.Q4_0, DType.Q2_K
EIGHT, MORE, ELSE, MXFP4 = When.EIGHT_EXPERTS, When.MORE, When.ELSE, DType.MXFP4

# fmt: off
_MIXES = (
    Mix("q8_0",   Q8_0,  7, output=Q8_0),
    Mix("q6_k",   Q6_K, 18),
    Mix("q5_k_m", Q5_K, 17, wv={MORE: Q6_K},
                            w2={MORE: Q6_K}),
    Mix("q5_k_s", Q5_K, 16),
    Mix("q5_1",   Q5_1,  9),
    Mix("q5_0",   Q5_0,  8, w2={When.FIRST_EIGHTH_WEIGHED: Q5_1}),
    Mix("q4_k_m", Q4_K, 15, wv={MORE: Q6_K},
                            wo={EIGHT: Q5_K},
                            w2={MORE: Q6_K}),
    Mix("q4_k_s", Q4_K, 14, wv={When.FIRST_4: Q5_K},
                            wo={EIGHT: Q5_K},
                            w2={When.FIRST_EIGHTH: Q5_K}),
    Mix("q4_1",   Q4_1,  3),
    Mix("q4_0",   Q4_0,  2, w2={When.FIRST_EIGHTH_WEIGHED: Q4_1}),
    Mix("q3_k_l", Q3_K, 13, wv={ELSE: Q5_K},
                            wo={EIGHT: Q3_K, ELSE: Q5_K},
                            w2={ELSE: Q5_K}),
    Mix("q3_k_m", Q3_K, 12, wv={When.FIRST_2: Q5_K, ELSE: Q4_K},
                            wo={EIGHT: Q5_K, ELSE: Q4_K},
                            w2={When.FIRST_SIXTEENTH: Q5_K, ELSE: Q4_K}),
    Mix("q3_k_s", Q3_K, 11, wo={EIGHT: Q5_K}),
    Mix("q2_k",   Q2_K, 10, wv={When.GROUPS_OF_4: Q4_K, ELSE: Q3_K},
                            wo={EIGHT: Q5_K, ELSE: Q3_K},
                            w2={ELSE: Q3_K}),
    Mix("mxfp4_moe", MXFP4, 38, wv={ELSE: Q8_0},
                                wo={ELSE: Q8_0},
                                w2={When.STACKED: MXFP4, ELSE: Q8_0},
                                others={When.STACKED: MXFP4, ELSE: Q8_0}, output=Q8_0),
)
# fmt: on
MIXES: Final[Mapping[str, Mix]] = {mix.name: mix for mix in _MIXES}

# Before the cell, whatever the mix: attn_k and attn_v are 0.6 % of 8x7B.
EVERY_MIX: Final[Mapping[Role, Rules]] = {Role.WK: {EIGHT: Q8_0}, Role.WV: {EIGHT: Q8_0}}
# After the cell: a 70B's attn_v is an eighth of attn_q, so what it gains costs little.
WV_OF_70B: Final[Mapping[DType, DType]] = {Q3_K: Q5_K, Q4_K: Q5_K}
# For rows that fill no whole blocks: blocks of 256 become blocks of 32, and those become f16.
FALLBACKS: Final[Mapping[DType, DType]] = {
    Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0,
}  # fmt: skip

TYPES: Final[Mapping[str, DType]] = {
    dtype.label: dtype
    for dtype in (DType.F32, DType.F16, DType.BF16, *dict.fromkeys(mix.base for mix in _MIXES))
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is asked for: a mix and what goes before it.

    ``overrides`` are searched in a tensor's GGUF name in order, and the first that is found
    decides (`parse_overrides` makes them). ``pure``: the base type for every matrix that nothing
    else is asked for. ``output``, ``embedding``: the type of that one tensor.
    """

    mix: str
    overrides: tuple[Override, ...] = ()
    pure: bool = False
    output: DType | None = None
    embedding: DType | None = None
    has_imatrix: bool = False


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose rows of ``columns`` values fill no whole blocks of the type wanted."""

    name: str
    columns: int
    wanted: DType
    got: DType


def find_mix(name: str) -> Mix:
    """The mix of that name, in any case.

    Raises:
        UsageFault: there is none; the hint lists those that are.
    """
    if name.lower() not in MIXES:
        raise UsageFault(f"no mix {name!r}", hint=f"one of {', '.join(MIXES)}")
    return MIXES[name.lower()]


def find_type(name: str) -> DType:
    """The type of that name, in any case, as ``--output-type`` and its like take it.

    Raises:
        UsageFault: there is none that can be written; the hint lists those that can.
    """
    if name.lower() not in TYPES:
        raise UsageFault(f"no type {name!r}", hint=f"one of {', '.join(TYPES)}")
    return TYPES[name.lower()]


def parse_overrides(texts: Iterable[str]) -> tuple[Override, ...]:
    """Read what ``--tensor-type`` was given: ``REGEX=TYPE``, split at the last equals sign.

    Raises:
        UsageFault: with all that are malformed, have a bad regex or an unknown type.
    """
    overrides: list[Override] = []
    findings: list[str] = []
    for text in texts:
        pattern, _, label = text.rpartition("=")
        problem = _problem(pattern, label)
        if problem:
            findings.append(f"{text!r}: {problem}")
        else:
            overrides.append((pattern, TYPES[label.lower()]))
    if findings:
        raise UsageFault(
            "--tensor-type takes a regex for GGUF names and a type, such as ffn_down=q6_k",
            findings=tuple(findings),
            hint=f"the types are {', '.join(TYPES)}",
        )
    return tuple(overrides)


def choose(
    quantization: Quantization, tensors: Iterable[tuple[str, Shape]], args: ModelArgs
) -> dict[str, DType]:
    """The type of every tensor, by GGUF name, in the order given.

    Shapes are row-major: ``[out, in]``, ``[n_experts, out, in]``, ``[dim]``.

    Raises:
        UsageFault: no such mix, or overrides that decide nothing; all of them are listed.
    """
    shapes = dict(tensors)
    wanted = _wanted(quantization, shapes, args)
    return {name: _fitting(wanted[name], shape[-1]) for name, shape in shapes.items()}


def fallbacks(
    quantization: Quantization, tensors: Iterable[tuple[str, Shape]], args: ModelArgs
) -> tuple[Fallback, ...]:
    """The tensors that `choose` gives another type than the mix or the user wants.

    llama-quantize does the same, but fails if a type asked for the output or the embedding does not
    fit; some of its versions also fail where f16 is the only way out of blocks of 32.

    Raises:
        UsageFault: as `choose`.
    """
    shapes = dict(tensors)
    return tuple(
        Fallback(name, shapes[name][-1], wanted, got)
        for name, wanted in _wanted(quantization, shapes, args).items()
        if (got := _fitting(wanted, shapes[name][-1])) is not wanted
    )


def _problem(pattern: str, label: str) -> str | None:
    """What is wrong with an override, if anything is."""
    if not pattern:
        return "expected REGEX=TYPE"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regex: {error}"
    return None if label.lower() in TYPES else f"no type {label!r}"


@dataclass(frozen=True, slots=True)
class _Place:
    """What conditions are asked of."""

    layer: int
    n_layers: int
    stacked: bool
    args: ModelArgs
    has_imatrix: bool

    def in_first(self, part: int) -> bool:
        return self.layer < self.n_layers // part

    def more(self) -> bool:
        eighth, last = self.n_layers // 8, 7 * self.n_layers // 8
        return self.in_first(8) or self.layer >= last or (self.layer - eighth) % 3 == 2


_HOLDS: Final[Mapping[When, Callable[[_Place], bool]]] = {
    When.EIGHT_EXPERTS: lambda place: place.args.n_experts == 8,
    When.GROUPS_OF_4: lambda place: place.args.n_heads // place.args.n_kv_heads >= 4,
    When.STACKED: lambda place: place.stacked,
    When.FIRST_2: lambda place: place.layer < 2,
    When.FIRST_4: lambda place: place.layer < 4,
    When.FIRST_SIXTEENTH: lambda place: place.in_first(16),
    When.FIRST_EIGHTH: lambda place: place.in_first(8),
    When.FIRST_EIGHTH_WEIGHED: lambda place: place.has_imatrix and place.in_first(8),
    When.MORE: _Place.more,
    When.ELSE: lambda _: True,
}


_NAMES: Final = "names are such as blk.0.attn_q.weight and output.weight"
_STACKED: Final = (
    "GGUF stores all experts of a layer as one tensor with one type, such as "
    "blk.0.ffn_down_exps.weight: no expert can have a type of its own"
)
_PATTERNS: Final = tuple(
    (stored.regex(), role)
    for convention in (GGUF, DENSE_GGUF, GGUF_SPLIT)
    for role, stored in convention.stored.items()
)


def _kind(name: str) -> tuple[int, Role]:
    """The layer of a GGUF name, -1 where there is none, and its role; KeyError for other names."""
    for regex, role in _PATTERNS:
        if match := regex.fullmatch(name):
            return int(match.groupdict().get("layer", -1)), role
    raise KeyError(name)


def _stays(role: Role, shape: Shape) -> bool:
    """Whether a tensor is f32 in every mix: norms and all else of one row, and the router."""
    return role is Role.ROUTER or math.prod(shape[:-1]) == 1


def _fitting(wanted: DType, columns: int) -> DType:
    """The type wanted, or the first of those that stand in for it whose blocks fill the rows."""
    if columns % wanted.block_size == 0:
        return wanted
    instead = FALLBACKS.get(wanted, DType.F16)
    return instead if columns % instead.block_size == 0 else DType.F16


def _wanted(
    quantization: Quantization, shapes: Mapping[str, Shape], args: ModelArgs
) -> dict[str, DType]:
    """The types before row lengths are looked at, in the order of ``shapes``.

    llama-quantize goes layer by layer and counts the tensors of a role that reach the mix, so an
    override of one layer's attn_v moves the rules for the layers behind it; experts have theirs
    by the layer's own number.
    """
    mix = find_mix(quantization.mix)
    kinds = {name: _kind(name) for name in shapes}
    free = [name for name, shape in shapes.items() if not _stays(kinds[name][1], shape)]
    asked = _asked(quantization, free, shapes.keys())
    reached: Counter[Role] = Counter()
    wanted = dict.fromkeys(shapes, DType.F32) | asked
    for name in sorted(set(free) - asked.keys(), key=lambda name: kinds[name][0]):
        layer, role = kinds[name]
        by_name = role is Role.W2 and args.n_experts > 1
        place = _Place(
            layer=layer if by_name else reached[role],
            n_layers=args.n_layers,
            stacked=len(shapes[name]) == 3 and shapes[name][0] > 1,
            args=args,
            has_imatrix=quantization.has_imatrix,
        )
        reached[role] += 1
        wanted[name] = mix.base if quantization.pure else _mixed(mix, role, place)
    return wanted


def _asked(
    quantization: Quantization, free: Sequence[str], names: Collection[str]
) -> dict[str, DType]:
    """The types that are asked for by name, of the tensors that are ``free`` to have any.

    Raises:
        UsageFault: with all overrides that decide nothing.
    """
    options = {
        GGUF.stored[Role.TOK_EMBEDDINGS].pattern: quantization.embedding,
        GGUF.stored[Role.OUTPUT].pattern: quantization.output,
    }
    asked = {name: dtype for name in free if (dtype := options.get(name))}
    deciding: set[int] = set()
    for name in free:
        for number, (pattern, dtype) in enumerate(quantization.overrides):
            if name not in asked and re.search(pattern, name):
                asked[name] = dtype
                deciding.add(number)
    idle = [
        f"--tensor-type {pattern}={dtype.label}: {_why_idle(pattern, free, names)}"
        for number, (pattern, dtype) in enumerate(quantization.overrides)
        if number not in deciding
    ]
    if idle:
        raise UsageFault(
            "--tensor-type has patterns that decide nothing",
            findings=tuple(idle),
            hint=_STACKED if any("_exps." in name for name in names) else _NAMES,
        )
    return asked


def _why_idle(pattern: str, free: Sequence[str], names: Collection[str]) -> str:
    """Why an override decides nothing."""
    if any(re.search(pattern, name) for name in free):
        return "what it matches is decided before it: by an option, or an override to its left"
    if any(re.search(pattern, name) for name in names):
        return "norms and the router stay f32"
    return "matches no tensor"


def _mixed(mix: Mix, role: Role, place: _Place) -> DType:
    """What a mix gives a tensor of a role."""
    cells = (EVERY_MIX.get(role, {}), mix.rules(role), {ELSE: mix.base})
    chosen = next(dtype for cell in cells for when, dtype in cell.items() if _HOLDS[when](place))
    args = place.args
    is_70b = args.n_layers == 80 and args.n_heads != args.n_kv_heads and args.n_experts != 8
    return WV_OF_70B.get(chosen, chosen) if role is Role.WV and is_70b else chosen
