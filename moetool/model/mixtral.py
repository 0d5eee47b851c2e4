"""Mixtral's Transformer, as the paper has it, in the raw release's own names.

    h = tok_embeddings[tokens]
    for each layer:  h = h + wo(attention(norm(h)))
                     h = h + Σ weight · w2(silu(w1 x) · w3 x)   over the chosen experts, x = norm(h)
    logits = output(norm(h))

A name ends in its shape:

    T tokens of this call    D dim         N heads       E experts                  F hidden dim
    C cached positions       H head dim    K kv heads    A experts of one token     V vocabulary
    L layers                 P = H / 2 rotary pairs      G = N / K queries of one kv head

Matrices and activations have the weights' own type. Float32 is used where less changes what comes
out: the statistics of a norm, rotary angles and rotation, router, softmax, the sum over experts,
logits. Sources: "Mixtral of Experts", arXiv 2401.04088; mistralai/mistral-inference:
src/mistral_inference/{transformer_layers,moe,rope}.py.

Weights come by name from anything that is a `Weights`: whether they are resident or read from
disk for every call is not known here. All sequences of a call go through a layer before the next
one is touched, and each weight is asked for once in a call, whatever the number of tokens: so any
number of prompts costs one pass over the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.errors import UsageFault
from moetool.model.cache import Cache, Place, in_chunks
from moetool.model.kernels import linear, widened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from moetool.arch.args import ModelArgs
    from moetool.model.packed import Matrix

SWIGLU = ("w1", "w2", "w3")
ATTENTION = ("wq", "wk", "wv", "wo")
NORMS = ("attention_norm", "ffn_norm")
CHUNK = (
    2048  # rows in a matrix product at a time: bounds what 32 k tokens take besides their stream
)
MANY = 32  # rows of which it may be taken for certain that every expert gets some


class Weights(Protocol):
    """Tensors by their raw Mistral name, on one device."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrices and activations; norms and routers may be finer."""
        ...

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor."""
        ...

    def matrix(self, name: str) -> Matrix:
        """The whole tensor for a product: packed, where it is held so."""
        ...

    def rows(self, name: str, index_T: Tensor) -> Tensor:
        """Some rows of a tensor of which no more may be in memory."""
        ...

    def expect(self, names: Iterable[str]) -> None:
        """Hear what will be asked for next, in this order, in place of what was said before."""
        ...


class Probe(Protocol):
    """Looks on while a model runs: a check, a trace, a heat map.

    Who derives from it sees what it looks at, and nothing of the rest.
    """

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:  # noqa: ARG002
        """See the residual stream behind ``attention`` or ``experts`` of a layer."""
        return

    def routed(self, layer: int, routing: Routing) -> None:  # noqa: ARG002
        """See which experts a layer chose."""
        return

    def expert(self, layer: int, expert: int, y_SD: Tensor) -> None:  # noqa: ARG002
        """See what an expert makes of its S tokens, before it is weighted."""
        return

    def inputs(
        self,
        layer: int,  # noqa: ARG002
        matrices: tuple[str, ...],  # noqa: ARG002
        x_SI: Tensor,  # noqa: ARG002
        expert: int | None = None,  # noqa: ARG002
    ) -> None:
        """See S rows that matrices of a layer, or of one of its experts, are multiplied with.

        Each row comes once, though not all of them together. Only the reference shows this:
        engines for GPUs fuse products.
        """
        return


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of each token, best first, and their weights, which sum to 1."""

    logits_TE: Tensor
    experts_TA: Tensor
    weights_TA: Tensor


class Transformer:
    """One model over one set of weights; it keeps no state between calls but the caller's cache."""

    def __init__(self, args: ModelArgs, weights: Weights) -> None:
        self.args = args
        self.weights = weights

    def new_cache(self, n_positions: int) -> Cache:
        """Make room for a sequence of at most ``n_positions`` tokens.

        Raises:
            UsageFault: the model was not trained for so long a context.
        """
        args, device = self.args, self.weights.device
        if n_positions > args.max_seq_len:
            raise UsageFault(
                f"{n_positions} tokens are more than the model's context of {args.max_seq_len}",
                hint="shorten the prompt, or ask for fewer tokens",
            )
        shape = (args.n_layers, args.n_kv_heads, n_positions, args.head_dim)
        keys = torch.zeros(shape, dtype=self.weights.dtype, device=device)
        cos, sin = rope_table(args.head_dim, args.rope_theta, n_positions)
        return Cache(keys, torch.zeros_like(keys), cos.to(device), sin.to(device))

    def forward(self, tokens_T: Tensor, cache: Cache, probe: Probe | None = None) -> Tensor:
        """Read tokens behind those in the cache; return float32 logits ``[T, V]``."""
        return self.logits(self.hidden(tokens_T, cache, probe))

    def hidden(self, tokens_T: Tensor, cache: Cache, probe: Probe | None = None) -> Tensor:
        """Read tokens behind those in the cache; return their last hidden states ``[T, D]``."""
        return self.hidden_of([tokens_T], [cache], probe)[0]

    def hidden_of(
        self, pieces: Sequence[Tensor], caches: Sequence[Cache], probe: Probe | None = None
    ) -> list[Tensor]:
        """Read pieces of one or more sequences in one pass over the weights.

        Each piece stands behind what its cache holds; pieces of one cache stand one behind the
        other. A position needs of those before it their keys and values in the same layer, no more.

        Raises:
            UsageFault: a cache has no room for so many.
        """
        places = [cache.take(len(piece_T)) for piece_T, cache in zip(pieces, caches, strict=True)]
        h_TD = self.embed(torch.cat(list(pieces)))
        h_TD = self.through(range(self.args.n_layers), h_TD, places, probe)
        return list(torch.split(h_TD, [len(place) for place in places]))

    @torch.inference_mode()
    def embed(self, tokens_T: Tensor) -> Tensor:
        """The residual stream as it begins."""
        return self.weights.rows("tok_embeddings.weight", tokens_T).to(self.weights.dtype)

    @torch.inference_mode()
    def through(
        self, layers: range, h_TD: Tensor, places: Sequence[Place], probe: Probe | None = None
    ) -> Tensor:
        """Put rows through layers; ``places`` say where they stand, one behind the other."""
        for layer in layers:
            surely = range(self.args.n_experts if len(h_TD) >= MANY else 0)
            self.weights.expect(self._names(layer) + self._expert_names(layer, surely))
            h_TD = self.attention(layer, h_TD, places, probe)
            if probe:
                probe.hidden(layer, "attention", h_TD)
            h_TD = self.experts(layer, h_TD, probe)
            if probe:
                probe.hidden(layer, "experts", h_TD)
        return h_TD

    @torch.inference_mode()
    def logits(self, h_TD: Tensor) -> Tensor:
        """Score every token of the vocabulary, in float32: rounded to bf16, logits would tie."""
        x_TD = rms_norm(h_TD, self.weights["norm.weight"], self.args.norm_eps)
        return widened(x_TD.float(), self.weights.matrix("output.weight"))

    @torch.inference_mode()
    def attention(
        self, layer: int, h_TD: Tensor, places: Sequence[Place], probe: Probe | None = None
    ) -> Tensor:
        """Add to the stream what its positions find in those before them."""
        name = f"layers.{layer}.attention"
        wq, wk, wv, wo = (self.weights.matrix(f"{name}.{w}.weight") for w in ATTENTION)
        streams: list[Tensor] = []
        at = 0
        for chunk in in_chunks(places, CHUNK):
            sizes = [len(place) for place in chunk]
            here_TD = h_TD[at : at + sum(sizes)]
            x_TD = self._norm(layer, "attention_norm", here_TD)
            cos_TP = torch.cat([place.cos for place in chunk])
            sin_TP = torch.cat([place.sin for place in chunk])
            q_TNH, k_TKH, v_TKH = (self._heads(x_TD, w) for w in (wq, wk, wv))
            turned = rotate(torch.cat((q_TNH, k_TKH), dim=1), cos_TP, sin_TP)
            q_TNH, k_TKH = turned.split_with_sizes((q_TNH.shape[1], k_TKH.shape[1]), dim=1)
            rows = zip(*(x.split_with_sizes(sizes) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
            found_TNH = [
                attend(q, *place.remember(layer, k, v), self.args.sliding_window)
                for place, (q, k, v) in zip(chunk, rows, strict=True)
            ]
            found_TQ = torch.cat(found_TNH).flatten(1)
            if probe:
                probe.inputs(layer, ATTENTION[:3], x_TD)
                probe.inputs(layer, ATTENTION[3:], found_TQ)
            addend_TD = linear(found_TQ, wo)
            streams.append(here_TD + self._joined(addend_TD).to(here_TD.dtype))
            at += sum(sizes)
        return torch.cat(streams)

    @torch.inference_mode()
    def experts(self, layer: int, h_TD: Tensor, probe: Probe | None = None) -> Tensor:
        """Add to the stream what the experts make of each position.

        A dense Mistral has one SwiGLU in their place.
        """
        x_TD = self._norm(layer, "ffn_norm", h_TD)
        if self.args.n_experts:
            return h_TD + self._mixture(layer, x_TD, probe)
        addend_TD = self._swiglu(layer, None, torch.split(x_TD, CHUNK), probe)
        return h_TD + self._joined(addend_TD).to(h_TD.dtype)

    def route(self, layer: int, x_TD: Tensor) -> Routing:
        """Choose the experts of a layer for rows that its norm has scaled."""
        gate_ED = self.weights[f"layers.{layer}.feed_forward.gate.weight"]
        return route(x_TD, gate_ED, self.args.n_experts_per_tok)

    def _mixture(self, layer: int, x_TD: Tensor, probe: Probe | None) -> Tensor:
        routing = self.route(layer, x_TD)
        if probe:
            probe.inputs(layer, ("gate",), x_TD)
            probe.routed(layer, routing)
        chosen = sorted(set(routing.experts_TA.flatten().tolist()))
        self.weights.expect(self._expert_names(layer, chosen) + self._names(layer + 1))
        sum_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for expert in chosen:
            token_S, place_S = torch.where(routing.experts_TA == expert)
            pieces = (x_TD[rows] for rows in torch.split(token_S, CHUNK))
            y_SD = self._swiglu(layer, expert, pieces, probe)
            if probe:
                probe.expert(layer, expert, y_SD.float())
            # No token chooses an expert twice: each row gets one addend, in the order of experts.
            weights_S1 = routing.weights_TA[token_S, place_S, None]
            sum_TD.index_add_(0, token_S, y_SD.float() * weights_S1)
        return self._joined(sum_TD).to(x_TD.dtype)

    def _swiglu(
        self, layer: int, expert: int | None, pieces: Iterable[Tensor], probe: Probe | None
    ) -> Tensor:
        """One expert, or the SwiGLU of a dense layer, on rows that come in pieces."""
        w1, w2, w3 = map(self.weights.matrix, self._expert_names(layer, [expert]))
        if not probe:
            return torch.cat([swiglu(x_SD, w1, w2, w3) for x_SD in pieces])
        made = []
        for x_SD in pieces:
            probe.inputs(layer, ("w1", "w3"), x_SD, expert)
            seen = partial(probe.inputs, layer, ("w2",), expert=expert)
            made.append(swiglu(x_SD, w1, w2, w3, seen))
        return torch.cat(made)

    def _joined(self, addend_TD: Tensor) -> Tensor:
        """A sum over heads or experts; all of it is here, unless several processes share them."""
        return addend_TD

    def _norm(self, layer: int, name: str, h_TD: Tensor) -> Tensor:
        weight_D, eps = self.weights[f"layers.{layer}.{name}.weight"], self.args.norm_eps
        if len(h_TD) <= CHUNK:
            return rms_norm(h_TD, weight_D, eps)
        return torch.cat([rms_norm(h, weight_D, eps) for h in torch.split(h_TD, CHUNK)])

    def _heads(self, x_TD: Tensor, w: Matrix) -> Tensor:
        return linear(x_TD, w).view(len(x_TD), -1, self.args.head_dim)

    def _names(self, layer: int) -> list[str]:
        """What each token needs of a layer, in this order; behind the last layer, of the output."""
        if layer == self.args.n_layers:
            return ["norm.weight", "output.weight"]
        name = f"layers.{layer}"
        gate = [f"{name}.feed_forward.gate.weight"] if self.args.n_experts else []
        dense = [] if self.args.n_experts else self._expert_names(layer, [None])
        attention = [f"{name}.attention.{w}.weight" for w in ATTENTION]
        return [*attention, *(f"{name}.{w}.weight" for w in NORMS), *gate, *dense]

    def _expert_names(self, layer: int, experts: Iterable[int | None]) -> list[str]:
        """The matrices of experts; None stands for the one of a dense model."""
        name = f"layers.{layer}.feed_forward"
        owners = [name if e is None else f"{name}.experts.{e}" for e in experts]
        return [f"{owner}.{w}.weight" for owner in owners for w in SWIGLU]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Scale each row to a root mean square of 1, then by the weight.

    The scaled row is rounded before the weight is applied, as every published implementation does.
    """
    x32 = x_TD.float()
    scaled = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (scaled.to(x_TD.dtype).float() * weight_D.float()).to(x_TD.dtype)


def rope_table(head_dim: int, theta: float, n_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[C, P]``.

    The angles are float64 until here: in float32 the fastest pair is off by 1e-3 rad at 32 k.
    """
    frequency_P = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle_CP = torch.outer(torch.arange(n_positions, dtype=torch.float64), frequency_P)
    return angle_CP.cos().float(), angle_CP.sin().float()


def rotate(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Turn each pair of neighbours (0 1)(2 3)… of every head by its position's angle."""
    a, b = x_TNH.float().view(*x_TNH.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos_TP[:, None], sin_TP[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x_TNH.dtype)


def attend(q_TNH: Tensor, k_KCH: Tensor, v_KCH: Tensor, window: int | None) -> Tensor:
    """Let the last T of C positions look at those before them, and at most ``window`` back."""
    T, N, H = q_TNH.shape
    K, C, _ = k_KCH.shape
    if T == 1:
        seen = slice(0 if window is None else max(0, C - window), C)
        # The G queries of a kv head stand as rows of one product: a key is read once, not G times.
        q_KGH = q_TNH.view(K, N // K, H)
        out = F.scaled_dot_product_attention(
            q_KGH[None], k_KCH[None, :, seen], v_KCH[None, :, seen]
        )
        return out.reshape(1, N, H)
    whole = T == C and window is None
    out = F.scaled_dot_product_attention(
        q_TNH.transpose(0, 1)[None],
        k_KCH[None],
        v_KCH[None],
        attn_mask=None if whole else visible(T, C, window, q_TNH.device),
        is_causal=whole,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def visible(T: int, C: int, window: int | None, device: torch.device) -> Tensor:
    """Which of C positions each of the last T may look at, ``[T, C]``."""
    back_TC = (
        torch.arange(C - T, C, device=device)[:, None] - torch.arange(C, device=device)[None, :]
    )
    seen_TC = back_TC >= 0
    return seen_TC if window is None else seen_TC & (back_TC < window)


def route(x_TD: Tensor, gate_ED: Tensor, n_chosen: int) -> Routing:
    """Choose the experts with the highest logits and share 1 among them by a softmax.

    All in float32: logits rounded to bf16 change which experts run. Of equal logits the lower
    index wins on every device, which topk does not promise and a stable sort does.
    """
    logits_TE = F.linear(x_TD.float(), gate_ED.float())
    ordered_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
    weights_TA = ordered_TE[:, :n_chosen].softmax(-1)
    return Routing(logits_TE, order_TE[:, :n_chosen], weights_TA)


def swiglu(
    x_TD: Tensor,
    w1_FD: Matrix,
    w2_DF: Matrix,
    w3_FD: Matrix,
    seen: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """One expert; ``seen`` is shown the rows that w2 is multiplied with."""
    gated_TF = F.silu(linear(x_TD, w1_FD)) * linear(x_TD, w3_FD)
    if seen:
        seen(gated_TF)
    return linear(gated_TF, w2_DF)
