"""A chat template goes along where a layout has a place for one, and is never made up."""

import json

import pytest

from moetool.convert.chat_template import read_chat_template
from moetool.convert.job import open_source, prepare
from moetool.convert.targets import find_target
from moetool.errors import BadHeader
from moetool.formats import open_checkpoint

TEMPLATE = "{% for message in messages %}[INST] {{ message.content }} [/INST] é{% endfor %}"


def converted(source, kind, out):
    with open_checkpoint(source) as checkpoint:
        prepare(open_source(checkpoint), find_target(kind, None), out).run()
    return out


def template_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return open_source(checkpoint).chat_template


@pytest.mark.parametrize("where", ["jinja", "config", "named"])
def test_it_goes_from_hugging_face_to_gguf_and_stays_there(tiny_release, tmp_path, where):
    """All three places in which transformers has kept it."""
    folder = converted(tiny_release, "safetensors", tmp_path / "hf")
    config = folder / "tokenizer_config.json"
    if where == "jinja":
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    else:
        named = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]
        value = TEMPLATE if where == "config" else named
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": value}))
    first = converted(folder, "gguf", tmp_path / "first")
    assert template_of(first) == TEMPLATE
    assert template_of(converted(first, "gguf", tmp_path / "second")) == TEMPLATE
    again = converted(folder, "safetensors", tmp_path / "again")
    assert json.loads((again / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


def test_the_raw_release_has_none_and_gets_none(tiny_release, tmp_path):
    """A base model that is told to chat would only seem to."""
    made = converted(tiny_release, "gguf", tmp_path / "made")
    with open_checkpoint(made) as checkpoint:
        assert not [key for key in checkpoint.catalog.metadata if "chat" in key]
    made = converted(tiny_release, "safetensors", tmp_path / "hf")
    assert "chat_template" not in json.loads((made / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("name", "content"),
    [("chat_template.jinja", b"\xff\xfe"), ("tokenizer_config.json", b"{")],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content):
    """Not taken for no template."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadHeader):
        read_chat_template(tmp_path, {})
