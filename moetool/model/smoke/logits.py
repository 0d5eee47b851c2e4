"""L4: logits of another engine over the same tokens, and how far ours are from them.

The distance is llama.cpp's, the normalised mean square error: the sum of squared differences over
the sum of the squares of theirs. ggml-org/llama.cpp judges an operation by the same measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.errors import Refused
from moetool.model.smoke.checks import Check, judge, number

if TYPE_CHECKING:
    from torch import Tensor

EXCELLENT, GOOD = 1e-4, 1e-2
# A best token is decided where it leads by so many times the difference that is usual between the
# two engines; there both must have the same, but for a token in a hundred: in 16 bits one now and
# then goes to another expert, and then all of its logits move.
DECIDED, SAME = 8.0, 0.99


def fits(name: str, theirs: Tensor, n_tokens: int, n_words: int) -> None:
    """Refuse logits that cannot be those of these tokens.

    Raises:
        Refused: neither one row for each token nor a single row for the last.
    """
    if tuple(theirs.shape) not in {(n_tokens, n_words), (n_words,)}:
        raise Refused(
            f"logits of shape {tuple(theirs.shape)}, expected ({n_tokens}, {n_words}), "
            f"or ({n_words},) for the last token",
            where=name,
            hint="moetool smoke-test --json lists the tokens as text_tokens",
        )


def compare(name: str, ours_TV: Tensor, theirs: Tensor) -> Check:
    """Near enough, and the same best token wherever the difference leaves no doubt of it."""
    name = f"logits of {name}"
    ours_SV, theirs_SV = ours_TV.cpu(), theirs
    if theirs.dim() == 1:
        ours_SV, theirs_SV = ours_SV[-1:], theirs[None]
    if not theirs_SV.isfinite().all():
        return judge("L4", name, ok=False, detail="theirs are not finite")
    apart = (ours_SV.double() - theirs_SV.double()).square()
    nmse = float(apart.sum() / theirs_SV.double().square().sum())
    best_S2 = theirs_SV.topk(2, -1)
    margin_S = best_S2.values[:, 0] - best_S2.values[:, 1]
    decided_S = margin_S > DECIDED * apart.mean().sqrt()
    same_S = ours_SV.argmax(-1) == best_S2.indices[:, 0]
    n_decided, n_same = int(decided_S.sum()), int((decided_S & same_S).sum())
    ok = nmse <= GOOD and n_same >= SAME * n_decided
    word = "excellent" if nmse <= EXCELLENT else "good" if nmse <= GOOD else f"beyond {GOOD:g}"
    detail = (
        f"NMSE {nmse:.1e} over {len(ours_SV)} positions ({word}), best token the same at "
        f"{n_same} of {n_decided} where it is decided"
    )
    return judge("L4", name, ok, detail, number(nmse), GOOD)
