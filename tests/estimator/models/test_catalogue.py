from __future__ import annotations

import csv
import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import read_input
from lorabench.estimator.models import catalogue
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.models.mirrors import ALIASES, MIRRORS
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.built_models import TOKEN_IDS, built_shapes, count_by_part, listed_shapes
from tests.small_models import small_config

SOURCES = {row["model"]: row for row in csv.DictReader((catalogue.CONFIGS / "sources.csv").open())}
"""Model → where its sizes were read, and its number of parameters as its publisher, or the Hub, says."""
GEMMA_2B = 2_506_172_416
"""Parameters of google/gemma-2b."""


def raw_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((catalogue.CONFIGS / f"{name}.json").read_text())
    return config


def by_shapes(*, with_closed_form: bool) -> dict[str, list[str]]:
    """One name for each set of shapes → all names that have it: tuned releases mostly have the shapes of their base."""
    seen: dict[str, list[str]] = {}
    for name in model_names():
        config = raw_config(name)
        if (config["model_type"] in MODEL_TYPES) == with_closed_form:
            shapes = {key: config[key] for key in config.keys() - catalogue.LENGTHS}
            seen.setdefault(json.dumps(shapes, sort_keys=True), []).append(name)
    return {names[0]: names for names in seen.values()}


CLOSED_FORM, BUILT = by_shapes(with_closed_form=True), by_shapes(with_closed_form=False)


def stated(name: str) -> str:
    """Return the published number of parameters, such as ``8030261248`` or ``7.9B``; empty if none is known."""
    return SOURCES[name]["parameters"]


def agrees(parameters: int, published: str) -> bool:
    """Whether a count is the published one, within the rounding of one such as ``7.9B``."""
    if published.isdecimal():
        return parameters == int(published)
    unit = {"M": 10**6, "B": 10**9}[published[-1]]
    digits = len(published[:-1].partition(".")[2])
    return abs(parameters / unit - float(published[:-1])) <= 0.5 * 0.1**digits


def test_each_model_names_the_place_where_its_sizes_were_read() -> None:
    assert list(SOURCES) == sorted(SOURCES, key=str.lower)
    assert SOURCES.keys() == set(model_names())
    for row in SOURCES.values():
        assert row["sizes_read_in"]
        assert bool(row["parameters"]) == bool(row["parameters_read_in"])
        other = row["sizes_read_in"].removeprefix("those of ")
        assert other == row["sizes_read_in"] or other.partition(";")[0] in SOURCES


def test_most_models_have_a_published_number_of_parameters() -> None:
    assert sum(bool(row["parameters"]) for row in SOURCES.values()) >= 0.9 * len(SOURCES)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_shipped_model_has_the_parameters_of_the_one_that_transformers_builds(name: str) -> None:
    spec = find_model(name)
    shapes = built_shapes(raw_config(name))
    assert listed_shapes(spec) == shapes
    assert spec.parameters_by_part == count_by_part(shapes)
    assert spec.parameters == sum(prod(shape) for shape in shapes.values())


def test_a_shipped_model_has_as_many_parameters_as_its_publisher_says() -> None:
    specs = [find_model(name) for names in CLOSED_FORM.values() for name in names if stated(name)]
    assert [spec.name for spec in specs if not agrees(spec.parameters, stated(spec.name))] == []


@pytest.mark.parametrize("name", [first for first, names in BUILT.items() if any(map(stated, names))])
def test_a_model_without_a_closed_form_has_as_many_parameters_as_its_publisher_says(name: str) -> None:
    config = raw_config(name)
    parameters = sum(prod(shape) for shape in built_shapes(config, *config.get("architectures", [])).values())
    assert {
        other: stated(other) for other in BUILT[name] if stated(other) and not agrees(parameters, stated(other))
    } == {}


def test_transformers_reads_each_shipped_config_and_its_spec_alike() -> None:
    from transformers import AutoConfig

    differing = []
    for name in CLOSED_FORM:
        theirs = AutoConfig.for_model(**raw_config(name)).to_dict()
        mine = AutoConfig.for_model(**find_model(name).config).to_dict()
        for config in (theirs, mine):
            (config.get("rope_parameters") or {}).pop("type", None)
        keys = set(theirs) - {*TOKEN_IDS, "n_inner", "partial_rotary_factor", "head_dim"}
        differing += [(name, key) for key in keys if theirs[key] != mine[key]]
    assert differing == []


def test_the_catalogue_has_the_models_that_people_tune() -> None:
    names = model_names()
    assert len(names) == len({name.lower() for name in names}) >= 300
    assert {"meta-llama/Llama-3.1-8B", "lorabench/demo-llama", "lorabench/demo-gpt2"} <= set(names)


def test_the_demo_models_are_small_and_read_bytes() -> None:
    llama, gpt2 = find_model("lorabench/demo-llama"), find_model("lorabench/demo-gpt2")
    assert (llama.hidden_size, llama.intermediate_size, llama.num_hidden_layers) == (256, 704, 4)
    assert (llama.num_attention_heads, llama.num_key_value_heads, llama.vocab_size) == (8, 2, 512)
    assert (gpt2.hidden_size, gpt2.num_hidden_layers, gpt2.num_attention_heads) == (192, 4, 6)
    assert (gpt2.vocab_size, gpt2.max_position_embeddings) == (512, 1024)


def test_a_shipped_model_is_found_by_its_id_or_the_last_part_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "read_config", lambda config, name: name)
    for name in model_names():
        last = name.rpartition("/")[2]
        assert {str(find_model(text)) for text in (name, name.upper(), last, last.lower())} == {name}


def test_finding_one_model_reads_no_file_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def recording(path: Path, *rest: Any) -> bytes:
        read.append(path)
        return read_input(path, *rest)

    monkeypatch.setattr("lorabench.estimator.models.catalogue.read_input", recording)
    for text in ("Qwen/Qwen3-0.6B", "unsloth/Qwen3-0.6B-unsloth-bnb-4bit"):
        find_model(text)
    assert read == [catalogue.CONFIGS / "Qwen/Qwen3-0.6B.json"] * 2


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("unsloth/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("NousResearch/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("unsloth/Llama-3.2-3B-Instruct-unsloth-bnb-4bit", "meta-llama/Llama-3.2-3B-Instruct"),
        ("unsloth/Llama-3.2-1B-Instruct-FP8-Dynamic", "meta-llama/Llama-3.2-1B-Instruct"),
        ("TheBloke/Llama-2-7B-Chat-GPTQ", "meta-llama/Llama-2-7b-chat-hf"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("TheBloke/CodeLlama-34B-fp16", "codellama/CodeLlama-34b-hf"),
        ("meta-llama/CodeLlama-7b-hf", "codellama/CodeLlama-7b-hf"),
        ("meta-llama/Llama-2-13b", "meta-llama/Llama-2-13b-hf"),
        ("mlx-community/Qwen2.5-7B-Instruct-4bit", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-32B-AWQ", "Qwen/Qwen3-32B"),
        ("Qwen/Qwen3-4B-Chat", "Qwen/Qwen3-4B"),
        ("allenai/OLMo-2-1124-7B-SFT", "allenai/OLMo-2-1124-7B"),
        ("google/gemma-2b-pt", "google/gemma-2b"),
        ("mistralai/Mistral-Nemo-Base-2407-bf16", "mistralai/Mistral-Nemo-Base-2407"),
        ("alpindale/Mistral-7B-v0.2-hf", "mistral-community/Mistral-7B-v0.2"),
        ("qwen2.5-7b-instruct-gguf", "Qwen/Qwen2.5-7B-Instruct"),
        ("unsloth/mistral-7b-bnb-4bit", "mistralai/Mistral-7B-v0.1"),
        ("mhenrichsen/gemma-7b", "google/gemma-7b"),
        ("models/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("axolotl-ai-co/gpt-oss-120b-dequantized", "openai/gpt-oss-120b"),
        ("agentica-org/DeepCoder-14B-Preview", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
    ],
)
def test_a_copy_or_a_tuned_release_has_the_shapes_of_the_model_behind_it(text: str, meant: str) -> None:
    spec = find_model(text)
    assert spec.name == meant
    assert spec.assumptions[0] == f"model {text} means {meant} (same shapes)"
    assert msgspec.structs.replace(spec, assumptions=(), stored=None) == find_model(meant)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "4 bits by bitsandbytes (nf4)"),
        ("unsloth/Llama-3.2-3B-Instruct-unsloth-bnb-4bit", "4 bits by bitsandbytes (nf4)"),
        ("hugging-quants/Meta-Llama-3.1-405B-BNB-NF4-BF16", "4 bits by bitsandbytes (nf4)"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "4 bits by GPTQ"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", "4 bits by AWQ"),
        ("unsloth/Qwen3-0.6B", None),
    ],
)
def test_a_copy_in_4_bits_trains_by_qlora_and_says_so(text: str, stored: str | None) -> None:
    spec = find_model(text)
    assert (spec.stored and spec.stored.what) == stored
    assert recipe_for(spec).recipe.method == ("lora" if stored is None else "qlora")
    assert any(f"its weights are stored in {stored}" in said for said in spec.assumptions) == (stored is not None)


@pytest.mark.parametrize("publisher", sorted(MIRRORS))
def test_each_mirror_keeps_the_names_of_what_it_copies(publisher: str) -> None:
    assert find_model(f"{publisher}/Qwen2.5-7B").name == "Qwen/Qwen2.5-7B"


def test_each_alias_means_a_shipped_model() -> None:
    assert set(ALIASES.values()) <= set(model_names())
    assert not set(ALIASES) & {name.lower() for name in model_names()}


@pytest.mark.parametrize(
    "text",
    [
        "NousResearch/Meta-Llama-3-80B",
        "unsloth/Llama-3.1-7B",
        "unsloth/Llama-3.5-8B-bnb-4bit",
        "Qwen/Qwen3-7B",
        "Qwen/Qwen2.5-8B-Instruct-AWQ",
        "google/gemma-5-4b-it",
        "TheBloke/Llama-2-7B-finetune-GPTQ",
        "somebody/Llama-3.1-8B",
        "somebody/Qwen2.5-7B-Instruct-AWQ",
        "mistralai/Mistral-7B-v0.9",
        "mistral-7b",
    ],
)
def test_a_name_never_means_another_size_or_generation_or_what_an_unknown_publisher_made(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch, raises=hub_error("RepositoryNotFoundError"))
    with pytest.raises(UserError, match="no model"):
        find_model(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("somebody/Llama-3.1-8B", "did you mean Llama-3.1-8B"),
        ("qwen-32b-it", "did you mean Qwen3-32B?"),
        ("google/gemma-4b-it", "did you mean google/gemma-3-4b-it?"),
        ("Qwen/Qwen-3-4B-2507", "did you mean Qwen/Qwen3-4B?"),
    ],
)
def test_a_suggestion_has_the_size_of_the_name(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, raises=hub_error("RepositoryNotFoundError"))
    with pytest.raises(UserError) as refused:
        find_model(text)
    assert said in str(refused.value)


def test_a_last_part_that_two_models_share_is_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "model_names", lambda: ("a/one", "b/One", "b/two"))
    with pytest.raises(UserError, match="'one' fits several models: name a/one or b/One"):
        find_model("one")


def test_a_config_file_and_the_folder_that_holds_it_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(raw_config("Qwen/Qwen3-0.6B")))
    (tmp_path / "other.json").write_text(json.dumps(raw_config("Qwen/Qwen3-0.6B")))
    monkeypatch.chdir(tmp_path)
    expected = find_model("Qwen/Qwen3-0.6B")
    for text in ("mine", "./mine", "mine/config.json", "other.json", str(tmp_path / "mine")):
        spec = find_model(text)
        assert spec.name == text
        assert (spec.config, spec.parameters) == (expected.config, expected.parameters)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ('{"a": NaN}', "no model_type"),  # Python writes it, so configs have it
        ("[" * 100_000, "not JSON"),
        ("[]", "has no JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": "t5", "is_encoder_decoder": true}', "an encoder-decoder"),
        (" " * (catalogue.LARGEST_CONFIG_BYTES + 1), "not a config.json: larger than 16 MiB"),
    ],
    ids=["cut off", "not text", "NaN", "nested", "a list", "empty", "not causal", "huge"],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as refused:
        find_model(str(file))
    assert said in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.json")
    file.write_text(json.dumps(small_config("llama")))
    spec = find_model(str(file))
    assert spec.name == f"{tmp_path}/caf?.json"
    assert estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64))).peak_allocated_bytes > 0


def test_a_path_where_nothing_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        find_model(str(tmp_path))
    for path in ("gpt2-xl.json", "gpt2-xl/config.json"):
        with pytest.raises(UserError, match=r"no such file: name a config.json or a model: did you mean gpt2-xl\?"):
            find_model(str(tmp_path / path))
    with pytest.raises(UserError, match="there is no such user"):
        find_model("~no-such-user/config.json")


def test_a_name_may_end_with_the_size_where_what_follows_changes_no_shape() -> None:
    begun = find_model("mixtral-8x7b")
    whole = find_model("mistralai/Mixtral-8x7B-v0.1")
    assert begun.assumptions == (
        "model mixtral-8x7b means mistralai/Mixtral-8x7B-v0.1, not mistralai/Mixtral-8x7B-Instruct-v0.1 "
        "(of the same shapes)",
    )
    assert msgspec.structs.replace(begun, assumptions=()) == whole
    assert whole.assumptions == ()
    assert find_model("Qwen3-30B").name == "Qwen/Qwen3-30B-A3B"
    assert find_model("ministral-8b").assumptions == ("model ministral-8b means mistralai/Ministral-8B-Instruct-2410",)


def test_a_file_goes_before_a_name_that_is_only_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixtral-8x7b").write_text(json.dumps(raw_config("google/gemma-2b")))
    assert find_model("mixtral-8x7b").model_type == "gemma"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lama-3.1-8b", "did you mean Llama-3.1-8B?"),
        ("llama3.1", "did you mean Llama-3.1-8B?"),
        ("mistral-7b", "did you mean Mistral-7B-v0.3?"),  # of two vocabularies
        ("completely-different", "lorabench models lists all"),
        (" ", "a model needs a name"),
        ("nul\0l", "null character"),
        ("x" * 5000, "no model"),
        ("a/b/c", "no such file or folder"),
    ],
)
def test_a_name_that_nothing_has_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        find_model(text)
    assert said in str(refused.value)


class FakeHub:
    """Stands in for the hub: what it raises where it is asked, or the file that it gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, raises: Exception | None = None, file: Path | None = None):
        import huggingface_hub

        self.asked: list[str] = []

        def answer(what: str, **_: Any) -> None:
            self.asked.append(what)
            if raises is not None:
                raise raises

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))


def test_a_model_on_the_hub_is_read_from_its_config_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_config("google/gemma-2b")))
    hub = FakeHub(monkeypatch, file=tmp_path / "config.json")
    assert find_model("somebody/their-gemma").parameters == GEMMA_2B
    assert len(hub.asked) == 1
    assert hub.asked[0].endswith("somebody/their-gemma/resolve/main/config.json")


def test_a_config_that_was_fetched_before_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "config.json").write_text(json.dumps(raw_config("google/gemma-2b")))
    hub = FakeHub(monkeypatch, raises=OSError("no network"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert find_model("somebody/their-gemma").parameters == GEMMA_2B
    assert hub.asked == []


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    error: Exception = getattr(errors, kind).__new__(getattr(errors, kind))
    return error


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "it is gated on the hub: accept its terms there"),
        ("RepositoryNotFoundError", "the hub has no such public model"),
        ("EntryNotFoundError", "the hub's model has no config.json"),
        ("OfflineModeIsEnabled", "the hub cannot be reached (OfflineModeIsEnabled)"),
    ],
)
def test_what_the_hub_cannot_give_is_refused_in_one_line(kind: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, raises=hub_error(kind))
    with pytest.raises(UserError) as refused:
        find_model("Qwen/Qwen2.5-7")
    assert f"no model 'Qwen/Qwen2.5-7' in the catalogue, and {said}" in str(refused.value)
    assert "did you mean Qwen/Qwen2.5-7B?" in str(refused.value)


def test_without_the_hub_library_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub is not installed"):
        find_model("somebody/their-gemma")
