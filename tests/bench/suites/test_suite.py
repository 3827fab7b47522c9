from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabench.bench.suites.suite import BY_HAND, single_recipe
from lorabench.bench.suites.suite_file import load_suite, shipped_suites
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

LLAMA, GPT2 = "lorabench/demo-llama", "lorabench/demo-gpt2"


def load(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return load_suite(str(path))


def recipes(suite: Any) -> list[tuple[Any, ...]]:
    return [(p.recipe.model.split("-")[-1], p.recipe.method, p.recipe.rank) for p in suite.recipes]


def test_the_demo_covers_every_method_on_two_models() -> None:
    assert recipes(load_suite("demo")) == [
        (model, method, rank)
        for model in ("llama", "gpt2")
        for method, rank in (("full", None), ("lora", 4), ("lora", 16), ("qlora", 16))
    ]


def test_lengths_are_written_as_on_the_command_line(tmp_path: Path) -> None:
    suite = load(tmp_path, f"matrix: {{model: {LLAMA}, seq_len: [128, 1k, 1.5k]}}")
    assert [resolved.recipe.seq_len for resolved in suite.recipes] == [128, 1024, 1536]
    with pytest.raises(UserError, match="line 1: seq_len: '1kk' is not a length"):
        load(tmp_path, f"matrix: {{model: {LLAMA}, seq_len: 1kk}}")


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_are_named_as_their_files(name: str) -> None:
    assert load_suite(name).name == name


def test_a_matrix_expands_to_every_combination_in_its_order(tmp_path: Path) -> None:
    suite = load(tmp_path, f"name: sweep\nmatrix: {{method: [lora, qlora], rank: [8, 4], model: {LLAMA}}}\nsteps: 7")
    assert (suite.name, suite.steps, suite.warmup_steps) == ("sweep", 7, 3)
    assert recipes(suite) == [("llama", "lora", 8), ("llama", "lora", 4), ("llama", "qlora", 8), ("llama", "qlora", 4)]


def test_options_apply_only_to_methods_that_have_them_and_equal_recipes_run_once(tmp_path: Path) -> None:
    text = f"""
defaults: {{model: {LLAMA}, lora_alpha: 8, seq_len: 64}}
matrix:
  method: [full, lora, qlora]
  rank: [2, 4]
  quant_type: [nf4, fp4]
"""
    suite = load(tmp_path, text)
    assert [(p.recipe.method, p.recipe.rank, p.recipe.settings().get("quant_type")) for p in suite.recipes] == [
        ("full", None, None),
        ("lora", 2, None),
        ("lora", 4, None),
        ("qlora", 2, "nf4"),
        ("qlora", 2, "fp4"),
        ("qlora", 4, "nf4"),
        ("qlora", 4, "fp4"),
    ]
    assert {p.recipe.settings().get("lora_alpha") for p in suite.recipes} == {None, 8.0}
    assert {p.recipe.seq_len for p in suite.recipes} == {64}


def test_exclude_drops_from_the_matrix_and_include_adds_to_it(tmp_path: Path) -> None:
    text = f"""
defaults: {{model: {LLAMA}}}
matrix: {{method: [lora, qlora], rank: [2, 4]}}
exclude:
- {{method: qlora, rank: 4}}
- {{rank: 2, method: lora}}
include:
- {{method: full}}
- {{method: qlora, rank: 4, model: {GPT2}, seq_len: 64}}
"""
    assert recipes(load(tmp_path, text)) == [
        ("llama", "lora", 4),
        ("llama", "qlora", 2),
        ("llama", "full", None),
        ("gpt2", "qlora", 4),
    ]


def test_a_condition_may_list_values_and_names_models_and_modules_in_any_way(tmp_path: Path) -> None:
    text = f"""
matrix:
  model: [{LLAMA}, {GPT2}]
  method: [lora, qlora]
  rank: [2, 4, 8]
  target_modules: [attention, mlp]
exclude:
- {{model: DEMO-GPT2, rank: [2, 4, 8]}}
- {{rank: [2, 4], method: [lora, qlora]}}
- {{target_modules: mlp, method: lora}}
"""
    suite = load(tmp_path, text)
    assert [
        (*told, p.recipe.settings().get("target_modules"))
        for told, p in zip(recipes(suite), suite.recipes, strict=True)
    ] == [
        ("llama", "lora", 8, "attention"),
        ("llama", "qlora", 8, "attention"),
        ("llama", "qlora", 8, "mlp"),
    ]


def test_what_cannot_be_trained_can_be_excluded(tmp_path: Path) -> None:
    text = f"""
matrix: {{model: [{LLAMA}, {GPT2}], method: [full, lora], dtype: [float16, float32], mixed_precision: [no, fp16]}}
exclude:
- {{model: {GPT2}}}  # whose positions end before 2048 tokens do
- {{method: full, dtype: float16, mixed_precision: fp16}}
"""
    assert len(load(tmp_path, text).recipes) == 7


def test_defaults_can_depend_on_the_recipe_and_what_is_said_of_it_wins(tmp_path: Path) -> None:
    text = f"""
defaults: {{seq_len: 64, batch_size: 1, double_quant: false}}
defaults_when:
- when: {{method: full}}
  use: {{seq_len: 32, optim: adamw_8bit}}
- when: {{model: demo-gpt2, optim: [adamw_8bit, sgd]}}
  use: {{batch_size: 4}}
- when: {{optim: adamw_torch_fused, rank: 16, lora_alpha: 32}}
  use: {{gradient_accumulation: 2}}
matrix: {{model: [{LLAMA}, {GPT2}], method: [full, qlora], rank: 16}}
include:
- {{model: {GPT2}, method: full, seq_len: 16}}
- {{model: {GPT2}, method: qlora, optim: sgd, double_quant: true}}
"""
    suite = load(tmp_path, text)
    assert [
        (
            r.model[-4:],
            r.method,
            r.seq_len,
            r.optim,
            r.batch_size,
            r.gradient_accumulation,
            r.settings().get("double_quant"),
        )
        for r in (resolved.recipe for resolved in suite.recipes)
    ] == [
        ("lama", "full", 32, "adamw_8bit", 1, 1, None),
        ("lama", "qlora", 64, "adamw_torch_fused", 1, 2, False),
        ("gpt2", "full", 32, "adamw_8bit", 4, 1, None),
        ("gpt2", "qlora", 64, "adamw_torch_fused", 1, 2, False),
        ("gpt2", "full", 16, "adamw_8bit", 4, 1, None),
        ("gpt2", "qlora", 64, "sgd", 4, 1, True),
    ]


def test_small_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    suite = load(tmp_path, f"matrix: {{model: {LLAMA}, lora_dropout: [5e-2, 0.25, .5, 0, 1.E-1]}}")
    assert [resolved.recipe.settings()["lora_dropout"] for resolved in suite.recipes] == [0.05, 0.25, 0.5, 0.0, 0.1]


def test_no_means_no_where_it_is_a_choice(tmp_path: Path) -> None:
    suite = load(
        tmp_path, f"matrix: {{model: {LLAMA}, mixed_precision: [no, bf16], double_quant: true, method: qlora}}"
    )
    assert [p.recipe.mixed_precision for p in suite.recipes] == ["no", "bf16"]
    assert suite.recipes[0].recipe.settings()["double_quant"] is True


def test_recipes_of_one_label_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    one = load(tmp_path, f"matrix: {{model: {LLAMA}, optim: [adamw_torch_fused, sgd], method: [full, lora]}}")
    assert list(one.labels().values()) == [
        "demo-llama full 1×2048 ckpt optim=adamw_torch_fused",
        "demo-llama lora r16 1×2048 ckpt optim=adamw_torch_fused",
        "demo-llama full 1×2048 ckpt optim=sgd",
        "demo-llama lora r16 1×2048 ckpt optim=sgd",
    ]
    several = load(tmp_path, f"matrix: {{model: {LLAMA}, optim: [adamw_torch_fused, sgd], lora_dropout: [0.05, 0.1]}}")
    assert list(several.labels().values()) == [
        "demo-llama lora r16 1×2048 ckpt",
        "demo-llama lora r16 1×2048 ckpt lora_dropout=0.1",
        "demo-llama lora r16 1×2048 ckpt optim=sgd",
        "demo-llama lora r16 1×2048 ckpt lora_dropout=0.1 optim=sgd",
    ]


def test_the_ranks_are_every_power_of_two_against_full() -> None:
    assert [rank for _, _, rank in recipes(load_suite("ranks"))] == [None, *(2**n for n in range(10))]


def test_the_optimizers_are_four_families_in_all_their_forms() -> None:
    names = {resolved.recipe.optim for resolved in load_suite("optimizers").recipes}
    families = {"AdamW", "Lion", "Adafactor", "SGD without momentum"}
    forms = {name for name, optimizer in OPTIMIZERS.items() if optimizer.name in families}
    assert names == forms - {"adamw_bnb_8bit"}  # transformers' other name of adamw_8bit


def test_memory_is_tried_by_length_batch_and_checkpointing() -> None:
    tried = {
        (r.seq_len, r.batch_size, r.gradient_checkpointing) for r in (p.recipe for p in load_suite("memory").recipes)
    }
    lengths, batches = (512, 1024, 2048, 4096, 8192), (1, 2, 4, 8)
    assert tried == {(n, b, c) for n in lengths for b in batches for c in (True, False) if n * b < 65536}


def test_the_methods_have_their_variants() -> None:
    suite = load_suite("methods")
    assert {(p.recipe.model, p.recipe.method) for p in suite.recipes} == {
        (model, method)
        for model in ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B")
        for method in ("full", "lora", "qlora")
    }
    assert len(set(suite.labels().values())) == len(suite.recipes) == 14


DOCS = Path(__file__).parents[3] / "docs/suites.md"


def test_the_suite_of_the_docs_has_the_recipes_that_they_say(tmp_path: Path) -> None:
    page = DOCS.read_text(encoding="utf-8")
    suite = load(tmp_path, page.partition("```yaml\n")[2].partition("```")[0])
    assert f"this suite has {len(suite.recipes)} recipes." in page
    small, large = "135M", "360M"
    assert recipes(suite) == [
        (small, "full", None),
        (small, "lora", 8),
        (small, "lora", 64),
        (small, "qlora", 8),
        (large, "full", None),
        (large, "lora", 8),
        (large, "lora", 64),
        (large, "qlora", 8),
        (small, "lora", 256),
    ]
    assert [p.recipe.batch_size for p in suite.recipes] == [4, 4, 4, 4, 2, 4, 4, 4, 4]
    assert (suite.name, suite.steps, suite.repeats) == ("rank-sweep", 30, 2)


def test_the_docs_list_every_shipped_suite() -> None:
    rows = [
        line.split("|")[1].strip() for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    assert sorted(rows[1 : rows.index("outcome")]) == sorted(shipped_suites())


def test_a_suite_without_a_name_has_its_files(tmp_path: Path) -> None:
    assert load(tmp_path, f"matrix: {{model: {LLAMA}}}").name == "suite"


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("name: x", None, "no recipe in it"),
        ("", None, "a suite is a mapping with the keys name"),
        ("- 1", None, "a suite is a mapping"),
        ("a: [", 1, "not YAML"),
        ("name: x\n\tmatrix: 1", 2, "not YAML"),
        ("matrix:\n\tmodel: M", 2, "cannot start any token: indent with spaces, not tabs"),
        ("name: x\nmatrx: 1", 2, "unknown key 'matrx': did you mean matrix?"),
        ("matrix: {model: M}\nrank: 3", 2, "rank is a recipe option: write it into matrix, include or defaults"),
        ("name: x\nname: y", 2, "name is given twice"),
        ("name: [x]", 1, "name must be text that is not empty, got ['x']"),
        ("name: by hand\nmatrix: {model: M}", 1, "is reserved for single recipes"),
        ("steps: 0", 1, "steps must be a whole number from 1 to 100000, got 0"),
        ("steps: many", 1, "steps must be a whole number from 1 to 100000, got 'many'"),
        ("steps: 1.5", 1, "got 1.5"),
        ("steps: 1e1", 1, "got 10.0"),
        *((f"steps: {odd}", 1, f"got '{odd}'") for odd in ("010", "1:30", "1_0", "0x10", "0o7", ".e1", "1e", "1" * 19)),
        ("steps: 1000000000000000000000000000", 1, "steps must be"),
        ("warmup_steps: -1", 1, "warmup_steps must be a whole number from 0 to 100000, got -1"),
        ("matrix: 3", 1, "matrix must be a mapping"),
        ("matrix:\n  model: M\n  rnk: 3", 3, "unknown recipe option 'rnk': did you mean rank?"),
        ("matrix:\n  model: M\n  load_in_4bit: true", 3, "'load_in_4bit': write method: qlora"),
        ("matrix:\n  model: M\n  method: dora", 3, "unknown method 'dora': DoRA is not among the methods"),
        ("matrix:\n  model: M\n  rank:\n  - 4\n  - eight", 5, "matrix.rank[1] must be a whole number"),
        ("matrix:\n  model: M\n  rank: 0", 3, "matrix.rank must be a whole number from 1 to 2147483647, got 0"),
        ("matrix:\n  model: M\n  rank: []", 3, "matrix.rank is an empty list"),
        ("matrix:\n  model: M\n  rank:", 3, "matrix.rank has no value"),
        ("matrix:\n  model: M\n  double_quant: yes", 3, "matrix.double_quant must be true or false, got 'yes'"),
        ("matrix:\n  model: M\n  method: [lora, qlroa]", 3, "unknown method 'qlroa': did you mean qlora?"),
        ("matrix:\n  model: M\n  method: [[lora]]", 3, "unknown method ['lora']"),
        ("matrix:\n  model: demo-lama", 2, "no model 'demo-lama'"),
        ("matrix: {method: lora}\ndefaults:\n  model: demo-lama", 1, "no model 'demo-lama'"),
        ("matrix:\n  rank: 3", 1, "no model: add model here"),
        ("matrix:\n  model: M\n  target_modules: q_prj", 1, "no linear layer 'q_prj': did you mean q_proj?"),
        (f"matrix:\n  model: {GPT2}\n  seq_len: 2048", 1, "learned positions for 1024 tokens"),
        ("matrix:\n  model: M\n  mixed_precision: fp16\n  method: full\n  dtype: float16", 1, "use dtype float32"),
        ("include:\n- model: M\n  method: full\n  rank: 8", 2, "rank does not apply to method full"),
        ("include: {model: M}", 1, "include must be a list"),
        ("include: [M]", 1, "include[0] must be a mapping"),
        ("matrix: {model: M}\nexclude:\n- rank: 3", 3, "exclude matches no recipe"),
        ("matrix: {model: M, method: lora}\nexclude:\n- method: lora", 2, "exclude drops every recipe"),
        ("repeats: 0", 1, "repeats must be a whole number from 1 to 1000, got 0"),
        ("matrix: {model: M}\nexclude:\n- model: demo-lama", 3, "no model 'demo-lama'"),
        ("matrix: {model: M}\ndefaults_when: {}", 2, "defaults_when must be a list"),
        ("matrix: {model: M}\ndefaults_when:\n- 3", 3, "defaults_when[0] must be a mapping with when and use"),
        ("defaults_when:\n- when: {rank: 2}", 2, "defaults_when[0] has no use"),
        ("defaults_when:\n- use: {rank: 2}", 2, "defaults_when[0] has no when"),
        ("defaults_when:\n- {if: 3}", 2, "unknown key 'if': "),
        ("defaults_when:\n- when:\n    rnk: 2\n  use: {rank: 2}", 3, "unknown recipe option 'rnk'"),
        ("defaults_when:\n- when: {rank: 2}\n  use:\n    rank: [2]", 4, "rank must be a whole number from 1"),
        ("matrix: {model: M}\ndefaults_when:\n- {when: {rank: 2}, use: {seq_len: 3}}", 3, "meets this condition"),
        ("x: !!python/object/apply:os.system [true]", 1, "a tag is not allowed"),
        ("matrix: {model: !!str M}", 1, "a tag is not allowed"),
        ("a: &a [1]\nb: *a", 2, "an alias is not allowed"),
        ("? [a]\n: 3", 1, "a key must be a plain word"),
        ("steps: 0o", 1, "steps must be a whole number from 1 to 100000, got '0o'"),
        ("steps: " + "[" * 1500, None, "nested too deeply"),
        (
            "matrix: {model: M, rank: [" + ",".join(map(str, range(1, 200))) + "], seq_len: ["
            + ",".join(map(str, range(1, 200))) + "]}",
            1,
            "it expands to 39,601 recipes",
        ),
    ],
)  # fmt: skip
def test_a_bad_suite_is_refused_with_its_line(tmp_path: Path, text: str, line: int | None, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, text.replace(" M", f" {LLAMA}").replace("[M]", f"[{LLAMA}]"))
    said = str(refused.value)
    assert complaint in said
    assert "\n" not in said
    assert said.startswith(f"{tmp_path}/suite.yaml" + (f" line {line}: " if line else ""))


def test_files_that_are_no_suites_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge.yaml").write_text("# " + "x" * 2**20)
    for name, complaint in (
        ("dmo.yaml", "no such suite: name a YAML file or a shipped suite (did you mean demo?)"),
        (".", "cannot read the suite"),
        ("binary.yaml", "not UTF-8 text"),
        ("huge.yaml", "not a suite: larger than 512 KiB"),
    ):
        with pytest.raises(UserError) as refused:
            load_suite(str(tmp_path / name))
        assert complaint in str(refused.value)


def test_a_single_recipe_is_a_suite_by_hand() -> None:
    spec = find_model(LLAMA)
    suite = single_recipe(ResolvedRecipe(spec, make_recipe(spec.name, rank=3)))
    assert (suite.name, recipes(suite)) == (BY_HAND, [("llama", "lora", 3)])
