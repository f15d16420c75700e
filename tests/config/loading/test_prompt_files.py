from pathlib import Path

import pytest

from harness.config.loading.files import read_prompts, splits_of
from harness.errors import ConfigError
from tests.config.example import load


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_yaml_of_texts_and_mappings(tmp_path: Path) -> None:
    written(tmp_path / "p.yaml", '- a fox\n- {text: an owl, tags: [bird], split: test}\n- "a cow"\n')
    prompts = load(tmp_path, prompts="p.yaml").prompts
    assert [prompt.text for prompt in prompts] == ["a fox", "an owl", "a cow"]
    assert prompts[1].tags == ("bird",)
    assert prompts[1].split == "test"


def test_one_prompt_per_line(tmp_path: Path) -> None:
    written(tmp_path / "p.txt", "a fox, no: 1\n\n  an owl  \n")
    assert read_prompts(tmp_path / "p.txt") == ["a fox, no: 1", "an owl"]


def test_partiprompts_layout_with_a_lone_quotation_mark(tmp_path: Path) -> None:
    header = "Prompt\tCategory\tChallenge\tNote\n"
    rows = 'a 2" bolt\tArtifacts\tBasic\t\n"an owl\tAnimals\t\tn\na cat\t\t\t\n'
    found = read_prompts(written(tmp_path / "p.tsv", header + rows))
    assert found == [
        {"text": 'a 2" bolt', "tags": ["Artifacts", "Basic"]},
        {"text": '"an owl', "tags": ["Animals"]},
        {"text": "a cat", "tags": []},
    ]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("p.yaml", "", "has no prompts"),
        ("p.yaml", "text: a fox", "must be a list of prompts"),
        ("p.txt", " \n\n", "has no prompts"),
        ("p.tsv", "Text\tCategory\na fox\tx\n", "must name a column Prompt"),
        ("p.json", "[]", r"prompts cannot be read from '.json'; allowed: .yaml, .txt, .tsv"),
        ("p.txt", "a fox\nan owl\na fox\n", "the prompt 'a fox' is given twice"),
        ("p.yaml", "- a fox\n- {text: ' a fox '}\n", "the prompt 'a fox' is given twice"),
    ],
)
def test_fault_names_the_prompts_file(tmp_path: Path, name: str, text: str, error: str) -> None:
    written(tmp_path / name, text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, prompts=name)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/x.yaml: prompts: {tmp_path}/{name}")
    assert error in line


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: prompts: .*/gone\.yaml does not exist"):
        load(tmp_path, prompts="gone.yaml")


def test_split_hangs_on_the_text_alone(tmp_path: Path) -> None:
    texts = [f"a fox number {n}" for n in range(200)]
    few = {prompt.text: prompt.split for prompt in load(tmp_path, prompts=texts[:100]).prompts}
    many = {prompt.text: prompt.split for prompt in load(tmp_path, prompts=texts[::-1]).prompts}
    assert all(many[text] == split for text, split in few.items())
    assert 70 < list(many.values()).count("test") < 130


def test_split_never_changes_between_versions() -> None:
    texts = ("a fox", "an owl", "a cat", "a dog")
    assert splits_of(texts, [None] * 4) == ["test", "dev", "dev", "dev"]


def test_neither_side_of_a_split_is_short_in_all_or_in_a_tag() -> None:
    for trial in range(200):
        texts = [f"prompt {trial} {place}" for place in range(16)]
        tags = ["animal"] * 8 + ["hands"] * 8
        splits = splits_of(texts, tags)
        assert 7 <= splits.count("test") <= 9  # 40 % of 16, upwards
        assert all(3 <= splits[part].count("test") <= 5 for part in (slice(8), slice(8, 16)))
        assert splits_of(texts[::-1], tags[::-1]) == splits[::-1]
    assert {splits_of([f"p {trial}"], [None])[0] for trial in range(20)} == {"dev", "test"}


@pytest.mark.parametrize("name", ["p.txt", "p.tsv", "p.yaml"])
def test_a_byte_order_mark_and_a_line_separator(name: str, tmp_path: Path) -> None:
    """The first is no text, and the second ends no line."""
    text = {"p.txt": "a\u2028fox\r\na cat\r\n", "p.tsv": "Prompt\tNote\r\na\u2028fox\t\r\na cat\t\r\n\r\n"}
    text["p.yaml"] = '- "a\\u2028fox"\n- a cat\n'
    (tmp_path / name).write_bytes(("\ufeff" + text[name]).encode())
    found = [
        prompt if isinstance(prompt, str) else prompt["text"] for prompt in read_prompts(tmp_path / name)
    ]
    assert found == ["a\u2028fox", "a cat"]
