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
disk for every call is not known here. Each is asked for once in a call, whatever the number of
tokens, so that a prompt costs one pass over the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moetool.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moetool.arch.args import ModelArgs

SWIGLU = ("w1", "w2", "w3")
LOGIT_ROWS = 256  # rows of `output` in float32 at a time: 4 MiB at dim 4096 stay in a CPU cache


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

    def rows(self, name: str, index_T: Tensor) -> Tensor:
        """Some rows of a tensor of which no more may be in memory."""
        ...


class Probe(Protocol):
    """Looks on while a model runs: a check, a trace, a heat map."""

    def hidden(self, layer: int, part: str, h_TD: Tensor) -> None:
        """See the residual stream behind ``attention`` or ``experts`` of a layer."""
        ...

    def routed(self, layer: int, routing: Routing) -> None:
        """See which experts a layer chose."""
        ...

    def expert(self, layer: int, expert: int, y_SD: Tensor) -> None:
        """See what an expert makes of its S tokens, before it is weighted."""
        ...


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of each token, best first, and their weights, which sum to 1."""

    logits_TE: Tensor
    experts_TA: Tensor
    weights_TA: Tensor


@dataclass(slots=True)
class Cache:
    """Keys and values of the positions seen so far; room for all C is taken at the start."""

    keys_LKCH: Tensor
    values_LKCH: Tensor
    cos_CP: Tensor
    sin_CP: Tensor
    length: int = 0

    @property
    def room(self) -> int:
        """How many positions there can be."""
        return self.cos_CP.shape[0]

    def extend(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more positions as seen.

        Raises:
            UsageFault: there is no room for so many.
        """
        if self.length + n_tokens > self.room:
            raise UsageFault(
                f"the cache has {self.room} positions, {self.length} taken, {n_tokens} to come"
            )
        self.length += n_tokens

    def rewind(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        self.length = min(self.length, length)


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

    @torch.inference_mode()
    def hidden_of(
        self, pieces: Sequence[Tensor], caches: Sequence[Cache], probe: Probe | None = None
    ) -> list[Tensor]:
        """Read pieces, each as `hidden` alone would, in one pass over the weights.

        Each piece stands behind what its cache holds; pieces of one cache stand one behind the
        other. A position needs of those before it their keys and values in the same layer, no more:
        so all pieces go through a layer before the next layer is touched.

        Raises:
            UsageFault: a cache has no room for so many.
        """
        starts = {id(cache): cache.length for cache in caches}
        for piece_T, cache in zip(pieces, caches, strict=True):
            cache.extend(len(piece_T))
        embed = partial(self.weights.rows, "tok_embeddings.weight")
        streams = [embed(piece_T).to(self.weights.dtype) for piece_T in pieces]
        for layer in range(self.args.n_layers):
            for cache in caches:
                cache.rewind(starts[id(cache)])
            for index, (h_TD, cache) in enumerate(zip(streams, caches, strict=True)):
                streams[index] = self.block(layer, h_TD, cache, probe)
                cache.extend(len(h_TD))
        return streams

    @torch.inference_mode()
    def logits(self, h_TD: Tensor) -> Tensor:
        """Score every token of the vocabulary, in float32: rounded to bf16, logits would tie."""
        x_TD = rms_norm(h_TD, self.weights["norm.weight"], self.args.norm_eps).float()
        output_VD = self.weights["output.weight"]
        blocks = (output_VD[at : at + LOGIT_ROWS] for at in range(0, len(output_VD), LOGIT_ROWS))
        return torch.cat([linear(x_TD, block.float()) for block in blocks], dim=-1)

    @torch.inference_mode()
    def block(self, layer: int, h_TD: Tensor, cache: Cache, probe: Probe | None = None) -> Tensor:
        """Put the positions behind the cache's through one layer: attention, then experts.

        Keys and values are written behind ``cache.length``, which the caller moves on.
        """
        h_TD = self.attention(layer, h_TD, cache)
        if probe:
            probe.hidden(layer, "attention", h_TD)
        h_TD = self.experts(layer, h_TD, probe)
        if probe:
            probe.hidden(layer, "experts", h_TD)
        return h_TD

    @torch.inference_mode()
    def attention(self, layer: int, h_TD: Tensor, cache: Cache) -> Tensor:
        """Add to the stream what its positions find in those before them."""
        return h_TD + self._attention(layer, self._norm(layer, "attention_norm", h_TD), cache)

    @torch.inference_mode()
    def experts(self, layer: int, h_TD: Tensor, probe: Probe | None = None) -> Tensor:
        """Add to the stream what the experts make of each position."""
        return h_TD + self._feed_forward(layer, self._norm(layer, "ffn_norm", h_TD), probe)

    def _norm(self, layer: int, name: str, h_TD: Tensor) -> Tensor:
        return rms_norm(h_TD, self.weights[f"layers.{layer}.{name}.weight"], self.args.norm_eps)

    def _attention(self, layer: int, x_TD: Tensor, cache: Cache) -> Tensor:
        here = slice(cache.length, cache.length + len(x_TD))
        cos_TP, sin_TP = cache.cos_CP[here], cache.sin_CP[here]
        keys_KCH, values_KCH = cache.keys_LKCH[layer], cache.values_LKCH[layer]
        q_TNH = rotate(self._heads(layer, "wq", x_TD), cos_TP, sin_TP)
        keys_KCH[:, here] = rotate(self._heads(layer, "wk", x_TD), cos_TP, sin_TP).transpose(0, 1)
        values_KCH[:, here] = self._heads(layer, "wv", x_TD).transpose(0, 1)
        seen_KCH = keys_KCH[:, : here.stop], values_KCH[:, : here.stop]
        out_TNH = attend(q_TNH, *seen_KCH, self.args.sliding_window)
        return linear(out_TNH.flatten(1), self.weights[f"layers.{layer}.attention.wo.weight"])

    def _heads(self, layer: int, name: str, x_TD: Tensor) -> Tensor:
        rows = linear(x_TD, self.weights[f"layers.{layer}.attention.{name}.weight"])
        return rows.view(len(x_TD), -1, self.args.head_dim)

    def _feed_forward(self, layer: int, x_TD: Tensor, probe: Probe | None) -> Tensor:
        """Choose and mix experts; a dense Mistral has one SwiGLU in their place."""
        if self.args.n_experts:
            return self._experts(layer, x_TD, probe)
        name = f"layers.{layer}.feed_forward"
        return swiglu(x_TD, *(self.weights[f"{name}.{w}.weight"] for w in SWIGLU))

    def _experts(self, layer: int, x_TD: Tensor, probe: Probe | None) -> Tensor:
        name = f"layers.{layer}.feed_forward"
        routing = route(x_TD, self.weights[f"{name}.gate.weight"], self.args.n_experts_per_tok)
        if probe:
            probe.routed(layer, routing)
        sum_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for expert in sorted(set(routing.experts_TA.flatten().tolist())):
            token, place = torch.where(routing.experts_TA == expert)
            w1, w2, w3 = (self.weights[f"{name}.experts.{expert}.{w}.weight"] for w in SWIGLU)
            y_SD = swiglu(x_TD[token], w1, w2, w3).float()
            if probe:
                probe.expert(layer, expert, y_SD)
            # No token chooses an expert twice: each row gets one addend, in the order of experts.
            sum_TD.index_add_(0, token, y_SD * routing.weights_TA[token, place, None])
        return sum_TD.to(x_TD.dtype)


def linear(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """Multiply by a matrix stored ``[out, in]``.

    One row is a product of matrix and vector, bound by memory: on a CPU torch.mv reads weights at
    25 GB/s where the general product reaches 15.
    """
    if x_TI.shape[0] == 1 and x_TI.device.type == "cpu":
        return torch.mv(w_OI, x_TI[0])[None]
    return F.linear(x_TI, w_OI)


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


def swiglu(x_TD: Tensor, w1_FD: Tensor, w2_DF: Tensor, w3_FD: Tensor) -> Tensor:
    """One expert."""
    return linear(F.silu(linear(x_TD, w1_FD)) * linear(x_TD, w3_FD), w2_DF)
