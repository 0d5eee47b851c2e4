"""What one tensor's own measures say: strange values, rows of zeros, strays among its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.proof.scan.findings import (
    LARGEST,
    LEAST_SCALE,
    MOST_OF_A_KIND,
    MOST_SCALE,
    N_SPREADS,
    ROW_REACH,
    WIDEST_SPREAD,
    WILD_ROW,
    WILD_SPIKE,
    Finding,
    Severity,
    finding,
)
from moetool.proof.scan.measures import FEWEST_COLUMNS, Measures, Tally
from moetool.proof.scan.robust import centre_of_rows

if TYPE_CHECKING:
    import torch

    from moetool.proof.scan.subjects import Item

FEWEST_ROWS = 8  # of which a spread can be told


def look_within(measures: Measures) -> Iterator[Finding]:
    """Yield what is found in one tensor, whatever its siblings are."""
    yield from _strange_values(measures)
    if measures.constant is not None:
        yield from _constant_tensor(measures, measures.constant)
        return
    yield from _zero_ranges(measures)
    yield from _constant_rows(measures)
    yield from _spikes(measures)
    yield from _faint(measures)
    yield from _stray_rows(measures)
    yield from _scale(measures)
    if measures.item.is_token_table:
        yield from _equal_rows(measures)


def _strange_values(measures: Measures) -> Iterator[Finding]:
    item = measures.item
    sure = Severity.ERROR if item.slot else Severity.WARNING  # a mask may hold infinities
    yield from _values(measures, "nan", Severity.ERROR, measures.nan, "NaN")
    yield from _values(measures, "infinity", sure, measures.infinite, "infinite")
    size = f"beyond ±{LARGEST:g}, up to {measures.largest_huge:.3g}"
    yield from _values(measures, "huge-value", sure, measures.huge, size)
    yield from _values(
        measures, "negative-norm", Severity.WARNING, measures.negative, "negative in a norm"
    )


def _values(
    measures: Measures, code: str, severity: Severity, tally: Tally, what: str
) -> Iterator[Finding]:
    if not tally.count:
        return
    row, column = _place(measures, tally.first)
    reason = "the value is " + what if tally.count == 1 else f"{tally.count:,} values are {what}"
    yield finding(
        code,
        severity,
        measures.item,
        reason,
        rows=(row, row),
        column=column,
        count=tally.count,
    )


def _constant_tensor(measures: Measures, value: float) -> Iterator[Finding]:
    item = measures.item
    if value == 0:
        yield finding("zero-tensor", _sure(item), item, "all values are zero")
    elif not item.is_norm and item.info.numel > 1:  # a norm of ones is how training begins
        yield finding("constant-tensor", _sure(item), item, f"all values are {value:.6g}")


def _zero_ranges(measures: Measures) -> Iterator[Finding]:
    item, numel, columns = measures.item, measures.item.info.numel, _columns(measures)
    n_blocks = len(measures.zero_blocks)
    ranges, n_ranges = _runs(measures.zero_blocks)
    for first, last in ranges:
        start = first * measures.block
        stop = numel if last + 1 == n_blocks else (last + 1) * measures.block
        n_values = stop - start
        rows = (start // columns, (stop - 1) // columns)
        if start % columns == 0 == stop % columns:
            unused = item.is_token_table
            severity = Severity.NOTE if unused else _sure(item)
            what = "all zero" + (", as rows of tokens that no text held are" if unused else "")
            yield finding("zero-rows", severity, item, what, rows=rows, count=rows[1] - rows[0] + 1)
        else:
            nbytes = item.info.dtype.nbytes(n_values)
            reason = f"{n_values:,} values ({nbytes:,} bytes) in a row are zero"
            yield finding(
                "zero-range",
                _sure(item),
                item,
                reason,
                rows=rows,
                column=start % columns,
                count=n_values,
            )
    yield from _more("zero-rows", item, len(ranges), n_ranges)


def _constant_rows(measures: Measures) -> Iterator[Finding]:
    item = measures.item
    if len(item.info.shape) < 2 or measures.width < FEWEST_COLUMNS:  # noqa: PLR2004  # a matrix
        return
    ranges, n_ranges = _runs(measures.constant_rows)
    for first, last in ranges:
        rows = _rows(measures, first, last)
        reason = "one value throughout each row"
        severity = Severity.WARNING if item.is_token_table else _sure(item)
        yield finding("constant-rows", severity, item, reason, rows=rows, count=last - first + 1)
    yield from _more("constant-rows", item, len(ranges), n_ranges)


def _spikes(measures: Measures) -> Iterator[Finding]:
    item = measures.item
    for spike in measures.spikes:
        row, column = _place(measures, spike.at)
        wild = spike.ratio >= WILD_SPIKE and item.slot is not None
        reason = f"{spike.value:.4g} is {spike.ratio:,.0f} times the median magnitude of its row"
        yield finding(
            "value-outlier",
            Severity.ERROR if wild else Severity.WARNING,
            item,
            reason,
            rows=(row, row),
            column=column,
        )
    yield from _more("value-outlier", item, len(measures.spikes), measures.n_spikes)


def _faint(measures: Measures) -> Iterator[Finding]:
    item, faint = measures.item, measures.faint
    if not faint.count:
        return
    row, column = _place(measures, faint.first)
    known = item.slot is not None and not item.is_token_table
    yield finding(
        "tiny-value",
        Severity.WARNING if known else Severity.NOTE,
        item,
        f"{faint.value:.3g} is far below its row and not zero"
        + (f"; so in {faint.count - 1:,} more rows" * (faint.count > 1)),
        rows=(row, row),
        column=column,
        count=faint.count,
    )


def _stray_rows(measures: Measures) -> Iterator[Finding]:
    """Rows whose scale is far from the median row of the same tensor."""
    item, scales = measures.item, measures.scales
    good = ~measures.odd & ~scales.isinf() & ~measures.constant_rows
    if int(good.sum()) < FEWEST_ROWS:
        return
    middle = centre_of_rows(scales[good])
    reach = middle.reach(ROW_REACH, N_SPREADS, WIDEST_SPREAD)
    off = (scales - middle.median).masked_fill(~good, 0)
    for sign, word in ((1, "above"), (-1, "below")):
        ranges, n_ranges = _runs(off * sign >= reach)
        for first, last in ranges:
            far = float((off[first : last + 1] * sign).max())
            reason = f"{2**far:.3g} times {word} the median row (spread {2**middle.spread:.2f}x)"
            yield finding(
                "row-outlier",
                _stray(item, far * sign),
                item,
                reason,
                rows=_rows(measures, first, last),
                count=last - first + 1,
            )
        yield from _more("row-outlier", item, len(ranges), n_ranges)


def _stray(item: Item, far: float) -> Severity:
    if far >= WILD_ROW and item.slot is not None:
        return Severity.ERROR
    if far < 0 and (item.is_token_table or item.slot is None):
        return Severity.NOTE  # tokens that training met seldom
    return Severity.WARNING


def _scale(measures: Measures) -> Iterator[Finding]:
    item, scale = measures.item, measures.scale
    if scale is None or item.slot is None or item.is_norm:
        return
    if not LEAST_SCALE <= 2**scale <= MOST_SCALE:
        reason = f"the median row has a root mean square of {2**scale:.3g}"
        yield finding("implausible-scale", Severity.WARNING, item, reason)


def _equal_rows(measures: Measures) -> Iterator[Finding]:
    """Rows of a token table that repeat an earlier one; rows of zeros are told of elsewhere."""
    first_with: dict[bytes, int] = {}
    twins: list[tuple[int, int]] = []
    empty = measures.scales.isinf().tolist()
    for row, digest in enumerate(measures.row_digests):
        earlier = first_with.setdefault(digest, row)
        if earlier != row and not empty[row]:
            twins.append((earlier, row))
    if twins:
        (one, other), n_twins = twins[0], len(twins)
        reason = f"equals row {one}" + (f"; {n_twins - 1:,} more rows repeat" * (n_twins > 1))
        yield finding(
            "duplicate-rows",
            Severity.NOTE,
            measures.item,
            reason,
            rows=(other, other),
            count=n_twins,
        )


def _more(code: str, item: Item, shown: int, total: int) -> Iterator[Finding]:
    if total > shown:
        reason = f"and {total - shown:,} more places like these in this tensor"
        yield finding(code, Severity.NOTE, item, reason, count=total - shown)


def _sure(item: Item) -> Severity:
    """How sure it is that zeros or a constant are wrong: of a mask or a bias nothing is known."""
    if item.slot is not None:
        return Severity.ERROR
    return Severity.WARNING if len(item.info.shape) > 1 else Severity.NOTE


def _columns(measures: Measures) -> int:
    shape = measures.item.info.shape
    return shape[-1] if shape else 1


def _place(measures: Measures, at: int) -> tuple[int, int]:
    """Row and column of a value that was counted flat."""
    return divmod(at, _columns(measures))


def _rows(measures: Measures, first: int, last: int) -> tuple[int, int]:
    """The rows of the matrix that measured rows lie in."""
    columns = _columns(measures)
    stop = min((last + 1) * measures.width, measures.item.info.numel)
    return first * measures.width // columns, (stop - 1) // columns


def _runs(mask: torch.Tensor) -> tuple[list[tuple[int, int]], int]:
    """The longest runs of a mask ``[N]`` as (first, last), in order; and how many there are."""
    import torch

    if not bool(mask.any()):
        return [], 0
    edge = torch.zeros(1, dtype=torch.int8)
    steps = torch.cat([edge, mask.to(torch.int8), edge]).diff()
    starts, stops = (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
    longest = (stops - starts).topk(min(MOST_OF_A_KIND, len(starts))).indices.sort().values
    runs = [(int(starts[at]), int(stops[at]) - 1) for at in longest]
    return runs, len(starts)
