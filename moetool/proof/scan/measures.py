"""One tensor, streamed once: what its rows are like, and what stands out of them.

    values ── pieces of whole rows ──┬─ largest and smallest of each block     passes over
                                     ├─ norm of each row                       what lies in a
                                     ├─ XXH3-128 of the bytes                  core's cache
                                     ├─ does a narrower type hold them?
                                     ├─ smallest of each row that is not zero
                                        │ a row that is not finite, or whose largest value
                                        └ carries much of its norm: looked at closely

Kept are a few bytes for each row and a bit for each block. A block is 128 values of a row, where
rows are made of those: a run of zeros as long as two blocks holds one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from moetool.convert.pieces import whole_rows
from moetool.convert.stream import torch_dtype
from moetool.proof.scan.faint import Faint
from moetool.proof.scan.findings import LARGEST, MOST_OF_A_KIND, SPIKE
from moetool.proof.scan.passage import Passage

if TYPE_CHECKING:
    import torch

    from moetool.proof.scan.subjects import Item
    from moetool.tensors import Buffer

PIECE = 1 << 19  # bytes looked at at once; with their f32 they stay in a cache
BLOCK = 128
# A vector, or a tensor of very many or very long rows, is measured in rows of its flat values, so
# that what is kept and held stays small whatever a header says.
MOST_COLUMNS, MOST_ROWS, FLAT_COLUMNS = 1 << 17, 1 << 20, 4096
FEWEST_COLUMNS = 8  # of a row that can be constant, or have an outlier
# An outlier of SPIKE medians is that many standard deviations of normal values.
_SPIKE_SIGMA = 0.6745 * SPIKE


@dataclass(slots=True)
class Tally:
    """How many values, and where the first of them is, counted flat."""

    count: int = 0
    first: int = 0

    def add(self, hits: torch.Tensor, start: int) -> None:
        """Count hits ``[R, C]`` that begin at a flat place."""
        n_hits = int(hits.sum())
        if n_hits and not self.count:
            row, column = (int(at) for at in hits.nonzero()[0])
            self.first = start + row * hits.shape[1] + column
        self.count += n_hits


@dataclass(frozen=True, slots=True)
class Spike:
    """One value far beyond its row: where it is, counted flat, and how many medians it has."""

    at: int
    value: float
    ratio: float


@dataclass(slots=True)
class Measures:
    """What is known of a tensor after one pass.

    ``width`` is how many values a measured row has, ``block`` how many a block. ``scales`` is the
    log2 of the root mean square of each row ``[R]``, -inf for a row of zeros; ``odd`` marks rows
    whose scale says nothing, as a value in them is reported. ``zero_blocks`` ``[R * blocks]``.
    """

    item: Item
    width: int
    block: int
    scales: torch.Tensor
    odd: torch.Tensor
    zero_blocks: torch.Tensor
    constant_rows: torch.Tensor
    nan: Tally
    infinite: Tally
    huge: Tally
    negative: Tally
    largest_huge: float
    spikes: list[Spike]
    n_spikes: int
    constant: float | None
    digest: bytes
    row_digests: list[bytes]
    passage: Passage
    faint: Faint

    @property
    def scale(self) -> float | None:
        """The log2 scale of the median row that is no row of zeros; None where there is none."""
        good = self.scales[~self.odd & ~self.scales.isinf()]
        return float(good.median()) if good.numel() else None


def row_width(shape: tuple[int, ...]) -> int:
    """How many values a row has that is measured: a row of the matrix, unless that is extreme."""
    columns = shape[-1] if shape else 1
    numel = math.prod(shape)
    if columns > MOST_COLUMNS or numel // max(columns, 1) > MOST_ROWS:
        return FLAT_COLUMNS
    return columns


def measure(item: Item, chunks: Iterable[Buffer], *, digest_rows: bool = False) -> Measures:
    """Measure one tensor of floats with at least one value.

    ``chunks`` are its values, row-major, in the stored type. ``digest_rows``: keep the digest of
    each row, of a matrix whose rows are measured as they are.
    """
    import torch

    dtype = item.info.dtype
    gauge = _Gauge(row_width(item.info.shape), signed=item.is_norm)
    digest, rows = xxhash.xxh3_128(), list[bytes]()
    passage, faint, row_nbytes = Passage(dtype), Faint(dtype), dtype.nbytes(gauge.width)
    for piece in whole_rows(chunks, row_nbytes, PIECE):
        digest.update(piece)
        if digest_rows:
            view = memoryview(piece)
            cuts = range(0, len(piece), row_nbytes)
            rows += [xxhash.xxh3_128_digest(view[at : at + row_nbytes]) for at in cuts]
        values = torch.frombuffer(piece, dtype=torch_dtype(dtype))
        passage.add(values)
        wide = values if values.dtype is torch.float64 else values.float()
        whole = wide.numel() // gauge.width * gauge.width
        for start, stop, n_rows in ((0, whole, whole // gauge.width), (whole, wide.numel(), 1)):
            if start < stop:
                at, part = gauge.at, slice(start, stop)
                scales = gauge.add(wide[part].view(n_rows, -1))
                faint.add(values[part].view(n_rows, -1), scales, at)
    return gauge.measures(item, digest.digest(), rows, passage, faint)


@dataclass(slots=True)
class _Gauge:
    """Gathers the measures of rows, a piece at a time."""

    width: int
    signed: bool
    at: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    largest_huge: float = 0.0
    n_spikes: int = 0
    nan: Tally = field(default_factory=Tally)
    infinite: Tally = field(default_factory=Tally)
    huge: Tally = field(default_factory=Tally)
    negative: Tally = field(default_factory=Tally)
    spikes: list[Spike] = field(default_factory=list)
    scales: list[torch.Tensor] = field(default_factory=list)
    odd: list[torch.Tensor] = field(default_factory=list)
    zero_blocks: list[torch.Tensor] = field(default_factory=list)
    constant_rows: list[torch.Tensor] = field(default_factory=list)

    @property
    def block(self) -> int:
        return BLOCK if self.width % BLOCK == 0 else self.width

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """Measure rows ``[R, C]`` that follow the last ones, and return their scales.

        The scale of a row that says nothing of its other values is returned as -inf.
        """
        import torch

        rows, columns = x.shape
        blocks = x.view(-1, self.block if columns == self.width else columns)
        high, low = blocks.amax(1), blocks.amin(1)
        top = torch.maximum(high, -low)
        norm = torch.linalg.vector_norm(x, dim=1)
        row_high, row_low = high.view(rows, -1).amax(1), low.view(rows, -1).amin(1)
        row_top = torch.maximum(row_high, -row_low)
        self.zero_blocks.append(top == 0)
        self.constant_rows.append((row_high == row_low) & (row_top > 0))
        self.scales.append(_log2_rms(norm, row_top, columns))
        self.lowest = _least(self.lowest, float(row_low.min()))
        self.highest = -_least(-self.highest, -float(row_high.max()))
        odd = ~(row_top <= LARGEST)  # also true of NaN
        if bool(odd.any()):
            self._count_strange(x)
        if self.signed:
            self.negative.add(x < 0, self.at)
        if columns >= FEWEST_COLUMNS:
            self._find_spikes(x, norm, row_top, odd)
        self.odd.append(odd)
        self.at += x.numel()
        return self.scales[-1].masked_fill(odd, -math.inf)

    def _count_strange(self, x: torch.Tensor) -> None:
        size = x.abs()
        self.nan.add(size.isnan(), self.at)
        self.infinite.add(size.isinf(), self.at)
        huge = (size > LARGEST) & ~size.isinf()
        self.huge.add(huge, self.at)
        if bool(huge.any()):
            self.largest_huge = max(self.largest_huge, float(size[huge].max()))

    def _find_spikes(
        self, x: torch.Tensor, norm: torch.Tensor, row_top: torch.Tensor, odd: torch.Tensor
    ) -> None:
        """Look closely where the largest value carries much of the norm; mark rows as odd."""
        columns = x.shape[1]
        carried = 0.5 * _SPIKE_SIGMA**2 / (_SPIKE_SIGMA**2 + columns)
        few = ((row_top.square() > carried * norm.square()) & ~odd).nonzero()[:, 0]
        if not few.numel():
            return
        size = x[few].abs()
        # Of a sparse row the median is that of what is there.
        usual = size.masked_fill(size == 0, math.nan).nanmedian(1).values
        highest, column = size.max(1)
        ratio = highest / usual
        for place in (ratio > SPIKE).nonzero()[:, 0].tolist():
            row, col = int(few[place]), int(column[place])
            odd[row] = True
            self.n_spikes += 1
            at = self.at + row * columns + col
            self.spikes.append(Spike(at, float(x[row, col]), float(ratio[place])))
        self.spikes.sort(key=lambda spike: -spike.ratio)
        del self.spikes[MOST_OF_A_KIND:]

    def measures(
        self,
        item: Item,
        digest: bytes,
        row_digests: list[bytes],
        passage: Passage,
        faint: Faint,
    ) -> Measures:
        import torch

        return Measures(
            item=item,
            width=self.width,
            block=self.block,
            scales=torch.cat(self.scales),
            odd=torch.cat(self.odd),
            zero_blocks=torch.cat(self.zero_blocks),
            constant_rows=torch.cat(self.constant_rows),
            nan=self.nan,
            infinite=self.infinite,
            huge=self.huge,
            negative=self.negative,
            largest_huge=self.largest_huge,
            spikes=self.spikes,
            n_spikes=self.n_spikes,
            constant=self.lowest if self.lowest == self.highest else None,
            digest=digest,
            row_digests=row_digests,
            passage=passage,
            faint=faint,
        )


def _log2_rms(norm: torch.Tensor, top: torch.Tensor, columns: int) -> torch.Tensor:
    """The log2 of the root mean square of rows; where squares left the range, of the largest."""
    import torch

    lost = ((norm == 0) & (top > 0)) | (norm.isinf() & ~top.isinf())
    return torch.where(lost, top, norm * columns**-0.5).log2().float()


def _least(one: float, other: float) -> float:
    """The smaller; NaN where one is, so that nothing equals it."""
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)
