"""The smoke test under torchrun: every rank looks at its own, the first one says it all."""

from __future__ import annotations

import json

WORDS = ("--device", "cpu", "--max-tokens", "12", "--json")


def test_a_smoke_test_sees_under_torchrun_what_it_sees_alone(moetool, torchrun, tiny_release):
    """Every tensor, every layer to the last digest, beside a source, and the same words."""
    words = ("smoke-test", tiny_release, "--against", tiny_release, *WORDS)
    alone = json.loads(moetool(*words, check=0, env={"OMP_NUM_THREADS": "1"}).stdout)
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(alone["layers"]) == 4
    for part in ("checks", "layers", "continuations", "text_tokens"):
        assert found[part] == alone[part]
    assert found["figures"]["scan_nbytes"] == alone["figures"]["scan_nbytes"]
    assert found["figures"]["weights_nbytes"] == alone["figures"]["weights_nbytes"]
    assert len(found["figures"]["ranks"]) == 4  # two ranks, two models
    assert all(rank["held"] == rank["planned"] for rank in found["figures"]["ranks"])


def test_damage_is_found_by_the_rank_that_has_it_and_told_by_the_first(ranks_of, damaged):
    """The last layer is rank 1's: NaN there fails the checks, and nothing is written."""
    codes, output, _ = ranks_of(2, "smoke-test", damaged, *WORDS)
    assert codes == [3, 3]
    found = json.loads(output)
    failed = {check["name"]: check["detail"] for check in found["checks"]
              if check["verdict"] == "FAIL"}  # fmt: skip
    assert failed["no NaN"] == "layers.3 expert 2 w2 row 0 column 0"
    assert failed["finite layers"] == "first not finite: layers.3 experts"
    assert not found["continuations"]


def test_golden_results_know_how_sums_were_split(moetool, ranks_of, tiny_release, tmp_path):
    """One process's results are a band for split sums, and the file says whose sums they are."""
    alone, split = tmp_path / "alone.json", tmp_path / "split.json"
    words = ("smoke-test", tiny_release, *WORDS)
    moetool(*words, "--record", alone, check=0, env={"OMP_NUM_THREADS": "1"})
    codes, output, error = ranks_of(
        2, *words, "--parallel", "tensor", "--expect", alone, "--record", split
    )
    assert codes == [0, 0], error
    (found,) = (check["detail"] for check in json.loads(output)["checks"]
                if check["name"] == "golden" and check["verdict"] == "PASS")  # fmt: skip
    assert found.endswith("recorded elsewhere: split none for tensor parallel on 2 ranks")
    recorded = json.loads(split.read_text())["fingerprint"]
    assert recorded["split"] == "tensor parallel on 2 ranks"
