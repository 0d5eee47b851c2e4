"""`moetool demo` walks the whole way, in one go, over a real torrent on this machine."""


def test_the_demo_ends_well(moetool_process, tmp_path):
    """Fetch, verify, inspect, convert and both smoke-tests, each printed and each 0."""
    done = moetool_process("demo", "--out", tmp_path / "demo", "--device", "cpu", check=0)
    for command in ("fetch", "verify", "inspect", "convert", "smoke-test"):
        assert f"$ moetool {command}" in done.stderr
    assert "repaired" in done.stderr
    assert f"$ moetool serve {tmp_path / 'demo' / 'tiny-mixtral-8x1m'}\n" in done.stderr
    assert (tmp_path / "demo" / "tiny-mixtral-8x1m-hf" / "model.safetensors").is_file()
