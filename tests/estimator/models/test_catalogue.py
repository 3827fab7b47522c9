from __future__ import annotations

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
from lorabench.estimator.models import catalogue
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.built_models import TOKEN_IDS, built_shapes, count_by_part, listed_shapes
from tests.small_models import small_config

PUBLISHED = {
    "01-ai/Yi-1.5-9B": 8_829_407_232,
    "01-ai/Yi-34B": 34_388_917_248,
    "01-ai/Yi-6B": 6_061_035_520,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-70m": 70_426_624,
    "HuggingFaceH4/zephyr-7b-beta": 7_241_732_096,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/QwQ-32B": 32_763_876_352,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "codellama/CodeLlama-13b-hf": 13_016_028_160,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "distilbert/distilgpt2": 81_912_576,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "ibm-granite/granite-3.3-8b-base": 8_170_864_640,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-xl": 1_557_611_200,
    "tiiuae/Falcon3-7B-Base": 7_455_550_464,
    "upstage/SOLAR-10.7B-v1.0": 10_731_524_096,
}
"""Parameters as the publishers' safetensors files count them, tied ones once."""


def raw_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((catalogue.CONFIGS / f"{name}.json").read_text())
    return config


def distinct_models() -> list[str]:
    """Names, one for each set of shapes: instruction-tuned models have those of their base."""
    seen: dict[str, str] = {}
    for name in model_names():
        spec = find_model(name)
        seen.setdefault(
            repr((spec.model_type, spec.embeddings, spec.layers, spec.head, spec.tie_word_embeddings)), name
        )
    return list(seen.values())


@pytest.mark.parametrize("name", distinct_models())
def test_a_shipped_model_has_the_parameters_of_the_one_that_transformers_builds(name: str) -> None:
    spec = find_model(name)
    shapes = built_shapes(raw_config(name))
    assert listed_shapes(spec) == shapes
    assert spec.parameters_by_part == count_by_part(shapes)
    assert spec.parameters == sum(prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_model_has_as_many_parameters_as_its_publisher_says(name: str) -> None:
    assert find_model(name).parameters == PUBLISHED[name]


def test_transformers_reads_each_shipped_config_and_its_spec_alike() -> None:
    from transformers import AutoConfig

    differing = []
    for name in model_names():
        theirs = AutoConfig.for_model(**raw_config(name)).to_dict()
        mine = AutoConfig.for_model(**find_model(name).config).to_dict()
        for config in (theirs, mine):
            (config.get("rope_parameters") or {}).pop("type", None)
        keys = set(theirs) - {*TOKEN_IDS, "n_inner", "partial_rotary_factor", "head_dim"}
        differing += [(name, key) for key in keys if theirs[key] != mine[key]]
    assert differing == []


def test_the_catalogue_has_the_models_that_people_tune() -> None:
    names = model_names()
    assert len(names) == len({name.lower() for name in names}) >= 40
    assert {"meta-llama/Llama-3.1-8B", "lorabench/demo-llama", "lorabench/demo-gpt2"} <= set(names)


def test_the_demo_models_are_small_and_read_bytes() -> None:
    llama, gpt2 = find_model("lorabench/demo-llama"), find_model("lorabench/demo-gpt2")
    assert (llama.hidden_size, llama.intermediate_size, llama.num_hidden_layers) == (256, 704, 4)
    assert (llama.num_attention_heads, llama.num_key_value_heads, llama.vocab_size) == (8, 2, 512)
    assert (gpt2.hidden_size, gpt2.num_hidden_layers, gpt2.num_attention_heads) == (192, 4, 6)
    assert (gpt2.vocab_size, gpt2.max_position_embeddings) == (512, 1024)


@pytest.mark.parametrize("text", ["meta-llama/Llama-3.1-8B", "Llama-3.1-8B", "llama-3.1-8b", "META-LLAMA/llama-3.1-8B"])
def test_a_shipped_model_is_found_by_its_id_or_the_last_part_in_any_case(text: str) -> None:
    assert find_model(text).name == "meta-llama/Llama-3.1-8B"


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
        ('{"a": NaN}', "not JSON"),
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
    assert find_model("Qwen3-30B").assumptions == ("model Qwen3-30B means Qwen/Qwen3-30B-A3B",)


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
    assert find_model("somebody/their-gemma").parameters == PUBLISHED["google/gemma-2b"]
    assert len(hub.asked) == 1
    assert hub.asked[0].endswith("somebody/their-gemma/resolve/main/config.json")


def test_a_config_that_was_fetched_before_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "config.json").write_text(json.dumps(raw_config("google/gemma-2b")))
    hub = FakeHub(monkeypatch, raises=OSError("no network"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert find_model("somebody/their-gemma").parameters == PUBLISHED["google/gemma-2b"]
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
    assert " or Qwen/Qwen2.5-7B or " in str(refused.value)


def test_without_the_hub_library_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub is not installed"):
        find_model("somebody/their-gemma")
