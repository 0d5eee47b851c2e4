"""One token on the device: no break for a compiler, no word from the host, the same logits."""

from __future__ import annotations

import pytest
import torch

from moetool.errors import UsageFault
from moetool.model.fast.agreement import agreement
from moetool.model.fast.decoder import Decoder
from moetool.model.fast.repeat import rehearse
from moetool.model.fast.resident import bucket
from moetool.model.fast.step import first_best, look_back, product
from moetool.model.mixtral import attend

COMPILER = "aot_eager"  # traces and decomposes as for a GPU, and runs torch's own kernels


class Rehearsed:
    """What `Graphs` does, but for the recording itself; counts what was compiled."""

    def __init__(self):
        self.n_compiled = self.n_recorded = 0

    def compiled(self, function):
        from torch._dynamo.backends.registry import lookup_backend

        def backend(graph, inputs):
            self.n_compiled += 1
            return lookup_backend(COMPILER)(graph, inputs)

        return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def recorded(self, step, state):
        self.n_recorded += 1
        rehearse(step, state)
        return step


def forced(model, tokens_T, n_prompt):
    """Logits of a prompt in one pass and of what follows step by step, whatever a step chooses."""
    cache = model.new_cache(len(tokens_T))
    decoder = Decoder(model, cache)
    decoder.prepare(n_prompt + 1, len(tokens_T))
    rows = [model.forward(tokens_T[:n_prompt], cache)]
    decoder.begin(rows[0][-1])
    for token in tokens_T[n_prompt:]:
        decoder.token_1.fill_(token)
        decoder.advance()
        rows.append(decoder.logits_V.clone()[None])
    return torch.cat(rows)


@pytest.mark.parametrize("changed", [
    {}, {"n_experts_per_tok": 1}, {"n_experts_per_tok": 3}, {"sliding_window": 7},
    {"n_kv_heads": 6}, {"n_kv_heads": 1},
])  # fmt: skip
def test_steps_give_the_logits_of_the_reference(pair, some_tokens, off, changed):
    reference, fast = pair(**changed)
    tokens = some_tokens(40)
    right = reference.forward(tokens, reference.new_cache(40))
    assert off(forced(fast, tokens, 20), right) < 1e-4


def test_compiled_without_a_break_and_once_for_all_layers(pair, some_tokens, off, monkeypatch):
    """fullgraph makes every break an error; three buckets are three shapes."""
    monkeypatch.setattr("moetool.model.fast.resident.SHORTEST", 4)
    reference, fast = pair(repeat=(repeat := Rehearsed()))
    tokens = some_tokens(40)
    right = reference.forward(tokens, reference.new_cache(40))
    assert off(forced(fast, tokens, 3), right) < 1e-4
    assert repeat.n_recorded == 3  # 4, 16 and 64 positions
    assert repeat.n_compiled == 3 + 1  # one layer for each, and the head
    forced(fast, tokens[:30], 9)
    assert repeat.n_compiled == 3 + 1  # another sequence needs nothing new


@pytest.mark.parametrize("int8", [False, True])
def test_a_step_asks_the_host_for_nothing(valueless, int8):
    """fullgraph alone would let a tolist through."""
    fast = valueless(int8=int8)
    decoder = Decoder(fast, fast.new_cache(8))
    with torch.inference_mode():
        decoder._run(8)
    assert decoder.logits_V.is_meta


def test_steps_in_bf16_agree_by_the_teacher_forced_rule(pair, some_tokens):
    reference, fast = pair(dtype=torch.bfloat16, dim=128, hidden_dim=224)
    tokens = some_tokens(200)
    right = reference.forward(tokens, reference.new_cache(200))
    found = agreement(right, forced(fast, tokens, 100), tokens)
    assert found.n == 199
    assert found.holds, found


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("position", [0, 6, 39])
def test_looking_back_sees_what_attention_sees(window, position):
    """Positions behind the present one are full of numbers that must not count."""
    random = torch.Generator().manual_seed(position)
    q_KGH, k_KCH, v_KCH = (torch.randn(2, n, 16, generator=random) for n in (3, 40, 40))
    seen = position + 1
    right = attend(q_KGH.view(1, 6, 16), k_KCH[:, :seen], v_KCH[:, :seen], window)
    found = look_back(q_KGH, k_KCH, v_KCH, torch.tensor([position]), window)
    assert (found.view(1, 6, 16) - right).abs().max() < 1e-5


def test_products_are_the_same_compiled_and_not():
    random = torch.Generator().manual_seed(0)
    w, x = (torch.randn(*shape, generator=random) for shape in ((3, 48, 64), (3, 64)))
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    for one in ((w[0], x[0]), (w, x[0]), (w, x)):
        assert (compiled(*one) - product(*one)).abs().max() < 1e-4
    assert (product(w, x)[2] - w[2] @ x[2]).abs().max() < 1e-4


def test_the_first_of_equal_logits_and_none_that_is_not_finite():
    assert first_best(torch.tensor([0.0, 3.0, 1.0, 3.0])).tolist() == [1]
    for wrong in (float("nan"), float("inf"), -float("inf")):
        assert first_best(torch.tensor([0.0, wrong, 1.0])).tolist() == [-1]


def test_a_rehearsal_leaves_no_trace(pair, some_tokens):
    """At the last position a second step would stand behind the end of the cache."""
    _, fast = pair()
    cache = fast.new_cache(8)
    decoder = Decoder(fast, cache)
    tokens = some_tokens(8)
    logits = fast.forward(tokens[:7], cache)
    decoder.begin(logits[-1])
    before = [x.clone() for x in (decoder.token_1, decoder.chosen_1, decoder.logits_V)]
    with torch.inference_mode():
        rehearse(lambda: decoder._run(8), (*_state(decoder),))
    assert all(map(torch.equal, before, _state(decoder)))
    assert _state(decoder)[-1].tolist() == [7]


def _state(decoder):
    return decoder.token_1, decoder.chosen_1, decoder.logits_V, decoder._position_1


def test_nothing_finite_leaves_a_token_that_can_be_embedded(pair):
    _, fast = pair()
    decoder = Decoder(fast, fast.new_cache(8))
    decoder.begin(torch.full((fast.args.vocab_size,), float("nan")))
    assert (decoder.chosen_1.item(), decoder.token_1.item()) == (-1, 0)


def test_buckets_grow_fourfold_up_to_the_context():
    sizes = [bucket(n, 32768) for n in (1, 512, 513, 2048, 2049, 8193, 32768)]
    assert sizes == [512, 512, 2048, 2048, 8192, 32768, 32768]
    assert bucket(100, 256) == 256


def test_a_step_has_the_same_strides_in_a_cache_of_any_length(pair):
    """Else each length would be compiled anew."""
    _, fast = pair(max_seq_len=4096)
    short, long = fast.new_cache(100), fast.new_cache(3000)
    assert (short.room, long.room) == (512, 2048 * 2)
    assert short.keys_LKCH[1][:, :512].stride() == long.keys_LKCH[1][:, :512].stride()


def test_a_full_cache_is_refused(pair, some_tokens):
    _, fast = pair(max_seq_len=8)
    cache = fast.new_cache(8)
    decoder = Decoder(fast, cache)
    decoder.begin(fast.forward(some_tokens(8), cache)[-1])
    with pytest.raises(UsageFault, match="8 positions, 8 taken"):
        decoder.advance()
