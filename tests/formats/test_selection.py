"""Of a listing one checkpoint is chosen, or the person is asked with the answers at hand."""

from __future__ import annotations

import pytest

from moetool.errors import UsageFault
from moetool.formats.selection import choose, forms_in

SIDE = ["params.json", "tokenizer.model", "RELEASE", "LICENSE"]
LEFT = ["README.md", ".gitattributes", "assets/logo.png", "eval/params.json", "model.ckpt"]
FORMS = {
    "raw": ["consolidated.00.pth", "consolidated.01.pth"],
    "packed": [f"consolidated.{n:02d}.pt" for n in range(8)],
    "parts": [f"consolidated.00.pth-split{n}" for n in range(11)],
    "dotted": [f"consolidated.safetensors.{n}" for n in range(53)],
    "hf": ["model.safetensors.index.json", "model-00001-of-00002.safetensors",
           "model-00002-of-00002.safetensors"],
    "one": ["model.safetensors"],
    "gguf": ["mix-q4-00001-of-00002.gguf", "mix-q4-00002-of-00002.gguf"],
}  # fmt: skip


def sized(*names):
    return dict.fromkeys(names, 10**9)


@pytest.mark.parametrize("form", FORMS)
def test_the_only_checkpoint_is_taken_with_what_explains_it(form):
    assert set(choose(sized(*LEFT, *SIDE, *FORMS[form]))) == {*SIDE, *FORMS[form]}


@pytest.mark.parametrize(
    ("one", "other"), [("raw", "hf"), ("packed", "hf"), ("parts", "packed"), ("gguf", "one")]
)
def test_of_two_a_person_chooses_and_each_answer_works(one, other):
    sizes = sized(*SIDE, *FORMS[one], *FORMS[other])
    with pytest.raises(UsageFault, match="2 checkpoints") as caught:
        choose(sizes)
    answers = [line.rpartition("--include ")[2].strip("'") for line in caught.value.findings]
    assert answers[0] in caught.value.hint
    chosen = [set(choose(sizes, [answer])) - set(SIDE) for answer in answers]
    assert sorted(map(sorted, chosen)) == sorted(map(sorted, (FORMS[one], FORMS[other])))
    assert any(f"{len(FORMS[one])} files, {len(FORMS[one])}.0 GB" in line
               for line in caught.value.findings)  # fmt: skip


def test_every_gguf_is_a_checkpoint_of_its_own():
    names = ["mix.Q4_K_M.gguf", "mix.Q8_0.gguf"]
    assert list(forms_in(names)) == names
    assert "mix.Q8_0.gguf" in choose(sized(*names), ["*Q8_0*"])


def test_weights_in_a_folder_are_found_by_their_pattern():
    sizes = sized("README.md", "original/consolidated.00.pth", "original/params.json", "RELEASE")
    with pytest.raises(UsageFault, match="at the top") as caught:
        choose(sizes)
    assert caught.value.hint == "--include 'original/*'"
    assert set(choose(sizes, ["original/*"])) == set(sizes) - {"README.md"}
    with pytest.raises(UsageFault, match="no checkpoint") as caught:
        choose(sized("README.md"))
    assert "--include" in caught.value.hint


def test_a_pattern_that_matches_nothing_lists_what_is_there():
    with pytest.raises(UsageFault, match="matches nothing") as caught:
        choose(sized("model.safetensors"), ["consolidated*"])
    assert caught.value.findings == ("there is 'model.safetensors'",)
