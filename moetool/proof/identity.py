"""One name for the values of a model, whatever file holds them (docs/reference/identity.md).

    canonical tensor ─ narrowest type ─ SHA-256 ─> leaf ─┐
    …                                              leaf ─┼─ Merkle tree ─> root
                                                   leaf ─┘

Layout, format, sharding and lossless widening change no leaf; a changed value changes one. The root
in any expert order sorts the experts of a layer by their digests, each with its row of the router:
computing with experts in another order is the same function. XXH3-128 in the place of SHA-256 gives
the fast root: it tells accidents apart, and nobody's intent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import xxhash

from moetool.arch.schema import Role, Slot
from moetool.errors import Refused
from moetool.proof import merkle
from moetool.proof.narrow import NARROWEST_FIRST, NotHeldError, in_type

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.arch.args import ModelArgs
    from moetool.proof.canonical import Weights
    from moetool.tensors import DType

FAST, STRONG = "xxh3_128", "sha256"
_ROLES_OF_EXPERT = (Role.W1, Role.W2, Role.W3)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The values of one canonical tensor: name and shape as in the raw release, narrowest type.

    ``sha256`` is empty in a fast identity. ``rows`` are the digests of a router's rows.
    """

    slot: Slot
    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    xxh3_128: str
    rows: tuple[str, ...] = ()

    def digest(self, algorithm: str) -> str:
        """The digest of one of the two algorithms."""
        return self.sha256 if algorithm == STRONG else self.xxh3_128

    def agrees(self, other: Leaf) -> bool:
        """Whether name, type, shape and XXH3-128 are the same."""
        return (self.name, self.dtype, self.shape, self.xxh3_128) == (
            other.name,
            other.dtype,
            other.shape,
            other.xxh3_128,
        )

    def data(self, algorithm: str) -> bytes:
        """What the leaf of the tree is made of."""
        return leaf_data(self.name, self.dtype, self.shape, f"{algorithm}:{self.digest(algorithm)}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint is by its values.

    ``root`` and ``any_order_root`` are SHA-256 roots, empty in a fast identity; ``fast_root`` has
    XXH3-128 leaves. ``expert_order`` gives, for each layer, the rank of each stored expert among
    those of the layer sorted by digest. ``maths`` are the hyperparameters that change what is
    computed, and ``maths_sha256`` names them; they are not in the roots.
    """

    schema: ClassVar[str] = "moetool.identity"
    version: ClassVar[int] = 1

    path: Path
    layout: str
    file_format: str
    root: str
    any_order_root: str
    fast_root: str
    expert_order: tuple[tuple[int, ...], ...]
    maths: Mapping[str, object]
    maths_sha256: str
    leaves: tuple[Leaf, ...]
    nbytes: int
    seconds: float
    expected: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is the identity that was expected, if one was."""
        return self.expected in {None, self.root, self.any_order_root, self.fast_root}

    @property
    def by_slot(self) -> dict[Slot, Leaf]:
        """The leaves by what they are."""
        return {leaf.slot: leaf for leaf in self.leaves}


def identify(
    weights: Weights,
    *,
    fast: bool = False,
    like: Identity | None = None,
    expected: str | None = None,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> Identity:
    """Compute the identity of a checkpoint, reading each weight once.

    A tensor whose values do not fit the narrowest type is read again from its beginning, mostly
    after its first few MiB. ``like`` is the identity of what this was just made of: where the
    XXH3-128 of a tensor is the same, so is its SHA-256, and is taken over. That tells accidents
    apart; of an output that somebody else made, nothing is taken over.

    Raises:
        Refused: a value is held by no type of the definition.
        ReadFailed, TruncatedFile: the machine could not read, or the file has shrunk.
    """
    began = time.monotonic()
    leaves: dict[Slot, Leaf] = {}
    done = 0
    known = like.by_slot if like else {}

    def digested(slot: Slot) -> Leaf:
        leaf = digest_leaf(weights, slot, fast=fast or slot in known)
        if slot not in known or fast:
            return leaf
        return known[slot] if leaf.agrees(known[slot]) else digest_leaf(weights, slot)

    for slot, leaf in weights.map(digested, weights.in_file_order):
        leaves[slot] = leaf
        done += weights.info(slot).nbytes
        progress(done, leaf.name)
    leaves = {slot: leaves[slot] for slot in weights.steps}
    args, catalog = weights.recognized.args, weights.checkpoint.catalog
    settings = args.maths
    return Identity(
        path=weights.path,
        layout=weights.recognized.convention.name,
        file_format=catalog.format,
        root="" if fast else _root(leaves, STRONG),
        any_order_root="" if fast else _any_order_root(leaves, args, STRONG),
        fast_root=_root(leaves, FAST),
        expert_order=_expert_order(leaves, args, FAST if fast else STRONG),
        maths=settings,
        maths_sha256=hashlib.sha256(maths_data(settings)).hexdigest(),
        leaves=tuple(leaves.values()),
        nbytes=done,
        seconds=time.monotonic() - began,
        expected=expected,
    )


def digest_leaf(weights: Weights, slot: Slot, *, fast: bool = False) -> Leaf:
    """Digest one canonical tensor in the narrowest type that holds its values.

    Raises:
        Refused: no type of the definition holds them.
    """
    info = weights.info(slot)
    for dtype in NARROWEST_FIRST:
        sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        kept = bytearray()
        try:
            for block in in_type(weights.read(slot), info.dtype, dtype):
                xxh3.update(block)
                if not fast:
                    sha256.update(block)
                if slot.role is Role.ROUTER:
                    kept += block
        except NotHeldError:
            continue
        strong = "" if fast else sha256.hexdigest()
        rows = tuple(_rows(kept, info.shape, dtype, FAST if fast else STRONG))
        return Leaf(slot, info.name, dtype.label, info.shape, strong, xxh3.hexdigest(), rows)
    raise Refused("holds values that no type of the definition holds", where=info.name)


def leaf_data(name: str, dtype: str, shape: tuple[int, ...], digest: str) -> bytes:
    """What a leaf of the tree is made of: a line each of text."""
    return "\n".join(["moetool-leaf-1", name, dtype, "x".join(map(str, shape)), digest]).encode()


def maths_data(settings: Mapping[str, object]) -> bytes:
    """What ``maths_sha256`` is the digest of: a ``name=value`` line each, sorted by name."""
    return "".join(f"{name}={settings[name]}\n" for name in sorted(settings)).encode()


def _rows(
    content: bytearray, shape: tuple[int, ...], dtype: DType, algorithm: str
) -> Iterator[str]:
    size = dtype.nbytes(shape[-1])
    for at in range(0, len(content), size):
        row = content[at : at + size]
        yield (
            hashlib.sha256(row).hexdigest()
            if algorithm == STRONG
            else xxhash.xxh3_128_hexdigest(row)
        )


def _root(leaves: Mapping[Slot, Leaf], algorithm: str) -> str:
    ordered = sorted(leaves.values(), key=lambda leaf: leaf.name)
    return merkle.root([leaf.data(algorithm) for leaf in ordered])


def _any_order_root(leaves: Mapping[Slot, Leaf], args: ModelArgs, algorithm: str) -> str:
    data = {
        leaf.name: leaf.data(algorithm)
        for slot, leaf in leaves.items()
        if slot.expert is None and slot.role is not Role.ROUTER
    }
    for layer in range(args.n_layers if args.n_experts else 0):
        for rank, (digest, _) in enumerate(sorted(_bundles(leaves, layer, args, algorithm))):
            name = f"layers.{layer}.feed_forward.experts.{rank}"
            router = leaves[Slot(Role.ROUTER, layer)]
            data[name] = leaf_data(name, router.dtype, (args.dim,), f"{algorithm}:{digest}")
    return merkle.root([data[name] for name in sorted(data)])


def _expert_order(
    leaves: Mapping[Slot, Leaf], args: ModelArgs, algorithm: str
) -> tuple[tuple[int, ...], ...]:
    order = []
    for layer in range(args.n_layers if args.n_experts else 0):
        ranked = [expert for _, expert in sorted(_bundles(leaves, layer, args, algorithm))]
        order.append(tuple(ranked.index(expert) for expert in range(args.n_experts)))
    return tuple(order)


def _bundles(
    leaves: Mapping[Slot, Leaf], layer: int, args: ModelArgs, algorithm: str
) -> Iterator[tuple[str, int]]:
    """The digest of each expert with its row of the router, whatever its place."""
    router = leaves[Slot(Role.ROUTER, layer)]
    for expert in range(args.n_experts):
        lines = [f"router {router.dtype} {router.rows[expert]}"]
        for role in _ROLES_OF_EXPERT:
            leaf = leaves[Slot(role, layer, expert)]
            lines.append(f"{role.value} {leaf.dtype} {leaf.digest(algorithm)}")
        yield _digest("".join(f"{line}\n" for line in lines).encode(), algorithm), expert


def _digest(data: bytes, algorithm: str) -> str:
    if algorithm == STRONG:
        return hashlib.sha256(data).hexdigest()
    return xxhash.xxh3_128_hexdigest(data)
