"""Hyperparameters of one model, and what follows from them: shapes, counts, cache sizes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from moetool.arch.schema import Role
from moetool.errors import InconsistentCheckpoint

LARGEST = 1 << 24  # of any count: beyond it a shape could not be a checkpoint's
MOST_TENSORS = 1 << 17  # 8x22B has 1,739; a layout is laid out in memory, tensor by tensor


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """The hyperparameters of one model, spelled as Mistral spells them.

    A dense model has no experts: ``n_experts`` and ``n_experts_per_tok`` are 0.
    """

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    vocab_size: int
    n_experts: int
    n_experts_per_tok: int
    rope_theta: float = 1e6
    max_seq_len: int = 32768
    sliding_window: int | None = None
    assumed: tuple[str, ...] = ()

    def shape(self, role: Role) -> tuple[int, ...]:  # noqa: PLR0911  # a table
        """The canonical shape of a role's tensor: ``[out, in]``, or ``[dim]`` for a norm."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        match role:
            case Role.W1 | Role.W3:
                return self.hidden_dim, self.dim
            case Role.W2:
                return self.dim, self.hidden_dim
            case Role.WQ:
                return queries, self.dim
            case Role.WK | Role.WV:
                return keys, self.dim
            case Role.WO:
                return self.dim, queries
            case Role.ROUTER:
                return self.n_experts, self.dim
            case Role.TOK_EMBEDDINGS | Role.OUTPUT:
                return self.vocab_size, self.dim
            case Role.ATTENTION_NORM | Role.FFN_NORM | Role.NORM:
                return (self.dim,)

    def heads(self, role: Role) -> int:
        """The heads whose rows a rotary layout orders, for wq and wk."""
        return self.n_heads if role is Role.WQ else self.n_kv_heads

    def numel(self, role: Role) -> int:
        """The elements of one tensor of a role."""
        return math.prod(self.shape(role))

    @property
    def n_params(self) -> int:
        """All parameters."""
        return self.n_params_shared + self.n_layers * self.n_experts * self.n_params_expert_layer

    @property
    def n_params_expert_layer(self) -> int:
        """The parameters of one expert (or of a dense model's feed-forward) in one layer."""
        return sum(self.numel(role) for role in Role if role.per_expert)

    @property
    def n_params_shared(self) -> int:
        """The parameters that every token meets: all but the experts."""
        return sum(
            self.numel(role) * (self.n_layers if role.per_layer else 1)
            for role in Role
            if not (role.per_expert and self.n_experts)
        )

    @property
    def n_params_active(self) -> int:
        """The parameters that one token meets, both embeddings counted whole."""
        experts = self.n_layers * self.n_experts_per_tok * self.n_params_expert_layer
        return self.n_params_shared + experts

    @property
    def maths(self) -> dict[str, object]:
        """The hyperparameters that change what is computed; floats as the f32 that GGUF keeps."""
        return {
            "dim": self.dim,
            "head_dim": self.head_dim,
            "hidden_dim": self.hidden_dim,
            "n_experts": self.n_experts,
            "n_experts_per_tok": self.n_experts_per_tok,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "n_layers": self.n_layers,
            "norm_eps_f32": _f32(self.norm_eps),
            "rope_theta_f32": _f32(self.rope_theta),
            "sliding_window": self.sliding_window or 0,
            "vocab_size": self.vocab_size,
        }

    def kv_cache_nbytes(self, n_tokens: int, type_size: int = 2) -> int:
        """The bytes that keys and values of ``n_tokens`` take."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * type_size * n_tokens


def _f32(value: float) -> str:
    """The bits of the nearest f32, as hex digits: one spelling for 1e-5 and 0.000009999999747."""
    return struct.pack(">f", value).hex()


def validate(args: ModelArgs) -> ModelArgs:
    """Return ``args`` if they can describe a model.

    Raises:
        InconsistentCheckpoint: with every hyperparameter that cannot be, all at once.
    """
    findings = [*_out_of_range(args)] or [*_contradictions(args)]
    if findings:
        raise InconsistentCheckpoint(
            "the hyperparameters cannot describe a model",
            findings=tuple(findings),
            hint="compare params.json or config.json with the published one",
        )
    return args


def _out_of_range(args: ModelArgs) -> Iterator[str]:
    counts = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size",
              "n_experts", "n_experts_per_tok", "max_seq_len", "sliding_window")  # fmt: skip
    dense = args.n_experts == args.n_experts_per_tok == 0
    for name in counts:
        value = getattr(args, name)
        least = 0 if dense and name.startswith("n_experts") else 1
        if value is not None and not least <= value <= LARGEST:
            yield f"{name} is {value}, expected {least} to {LARGEST}"
    if not 0 < args.norm_eps < 1:
        yield f"norm_eps is {args.norm_eps}, expected a small positive number"
    if not 1 < args.rope_theta < math.inf:
        yield f"rope_theta is {args.rope_theta}, expected a finite number above 1"


def _contradictions(args: ModelArgs) -> Iterator[str]:
    if args.n_heads % args.n_kv_heads:
        yield f"n_heads {args.n_heads} is no multiple of n_kv_heads {args.n_kv_heads}"
    if args.head_dim % 2:
        yield f"head_dim {args.head_dim} is odd, rotary pairs need an even one"
    n_tensors = args.n_layers * (7 + 3 * max(args.n_experts, 1))
    if n_tensors > MOST_TENSORS:
        yield (
            f"{args.n_layers} layers of {args.n_experts} experts are {n_tensors} tensors, more "
            f"than {MOST_TENSORS}"
        )
    if args.n_experts_per_tok > args.n_experts:
        yield f"n_experts_per_tok {args.n_experts_per_tok} exceeds n_experts {args.n_experts}"
