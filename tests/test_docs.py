"""The figures of docs/ against the code: every command is run, every product and every error is worked out again."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lorabench.cli import lorabench
from lorabench.cli.estimate import command
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.dtypes import DTYPES
from lorabench.estimator.explanation.peak import Peak
from lorabench.estimator.memory.optimizers import optimizer_bytes
from lorabench.estimator.memory.states import states
from lorabench.estimator.memory.workspaces import workspaces
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import LEFT_OUT, OPTIMIZERS
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.quantities import in_gib
from lorabench.estimator.recipes.adapter_file import adapter_file_bytes
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.arithmetic import value_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MEASURED = ROOT / "tests/estimator/ground_truth"

Row = dict[str, str]


def tables(page: str, first_column: str) -> list[list[Row]]:
    """Return the tables of ``page`` whose first column has that title."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE):
        titles, _, *rows = ([cell.strip() for cell in line.strip("| \n").split(" | ")] for line in block.splitlines())
        if titles[0] == first_column:
            found.append([dict(zip(titles, row, strict=True)) for row in rows])
    return found


def rows(page: str, first_column: str) -> list[Row]:
    return [row for table in tables(page, first_column) for row in table]


def held(component: str) -> Callable[[Any], str]:
    return lambda answer: in_gib(sum(term["bytes"] for term in answer["states"] if term["component"] == component))


def at_peak(component: str) -> Callable[[Any], str]:
    return lambda answer: in_gib(answer["memory"]["components"][component])


CELLS: dict[str, Callable[[Any], str]] = {
    "parameters": lambda answer: f"{answer['parameters']['total']:,}",
    "trainable": lambda answer: f"{answer['parameters']['trainable']:,}",
    "in 4 bits": lambda answer: f"{answer['parameters']['quantized']:,}",
    "weights": held("weights"),
    "4-bit weights": held("quantized_weights"),
    "adapters": held("adapters"),
    "gradients": held("gradients"),
    "optimizer states": held("optimizer_states"),
    "activations": at_peak("activations"),
    "logits": at_peak("logits"),
    "peak allocated": lambda answer: in_gib(answer["memory"]["peak_allocated_bytes"]),
    "phase": lambda answer: answer["memory"]["phase"],
    "tokens/s": lambda answer: f"{answer['throughput']['tokens_per_second']:,.0f}",
}


def answer(command_line: str) -> Any:
    program, verb, *arguments = shlex.split(command_line)
    assert (program, verb) == ("lorabench", "estimate")
    ran = CliRunner().invoke(command, [*arguments, "--format", "json"], catch_exceptions=False)
    assert ran.exit_code == 0
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    "row", [*rows("claims.md", "command"), *rows("speed.md", "command")], ids=lambda row: row["command"].strip("`")
)
def test_a_claim_s_command_answers_what_the_page_says(row: Row) -> None:
    answered = answer(row["command"].strip("`"))
    said = {title: cell for title, cell in row.items() if title != "command"}
    assert said == {title: CELLS[title](answered) for title in said}


def test_the_arithmetic_of_the_claims_is_right() -> None:
    for row in rows("claims.md", "arithmetic"):
        assert f"{int(value_of(row['arithmetic'])):,}" == row["result"]


def test_what_the_claims_page_concludes_follows_from_its_tables() -> None:
    """QLoRA above LoRA; LoRA and full fine-tuning drawing near; 4 GB never seen."""
    peaks = {
        row["command"].strip("`"): float(row["peak allocated"].removesuffix(" GiB").replace(",", ""))
        for row in rows("claims.md", "command")
        if "peak allocated" in row
    }
    estimate = "lorabench estimate llama-3.1-8b --method"
    lora, qlora = f"{estimate} lora", f"{estimate} qlora --prepare-kbit"
    unsaved = "--no-gradient-checkpointing --seq-len"
    assert peaks[f"{qlora} {unsaved} 2048"] < peaks[f"{lora} {unsaved} 2048"]
    assert peaks[f"{qlora} {unsaved} 4096"] > peaks[f"{lora} {unsaved} 4096"]
    assert peaks[f"{qlora} --seq-len 32768"] > peaks[f"{lora} --seq-len 32768"]
    full = f"{estimate} full --dtype bfloat16 --mixed-precision no"
    shares = [
        peaks[f"{lora} --seq-len {length}"] / peaks[f"{full} --seq-len {length}"]
        for length in (2048, 8192, 32768, 131072)
    ]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / 3, abs=0.03)
    assert shares[-1] == pytest.approx(0.9, abs=0.03)
    assert peaks[qlora] > 12


def letters(recipe: Recipe) -> dict[str, int]:
    spec = find_model(recipe.model)
    kv = spec.num_key_value_heads * spec.head_dim
    return {
        "h": spec.hidden_size,
        "f": spec.intermediate_size,
        "qd": spec.num_attention_heads * spec.head_dim,
        "r": recipe.rank or 0,
        "C": 4 * kv + 4 * spec.num_attention_heads + 8,
    }


@pytest.mark.parametrize("row", rows("memory.md", "recipe"), ids=lambda row: row["recipe"].strip("`"))
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "mistralai/Mistral-Nemo-Base-2407"])
def test_one_layer_saves_what_its_formula_says(row: Row, model: str) -> None:
    options = json.dumps(answer(f"lorabench estimate {model} {row['recipe'].strip('`')}")["recipe"])
    recipe = make_recipe(**json.loads(options))
    values = letters(recipe)
    formula = re.sub(r"[a-zC]+", lambda letter: str(values[letter[0]]), row["bytes per token and layer"])
    spec = find_model(model)
    saved = Peak(
        ResolvedRecipe(spec, recipe), "cuda", estimate_memory(ResolvedRecipe(spec, recipe))
    ).layer_bytes_per_token()
    assert saved == value_of(formula)
    if model == "meta-llama/Llama-3.1-8B":
        assert f"{saved:,}" == row["Llama-3.1-8B"]


def measurements(name: str) -> Iterator[Row]:
    with (MEASURED / name).open(newline="") as file:
        yield from csv.DictReader(file)


A100 = list(measurements("a100_80gb_mistral_7b.csv"))
A100_ARCHITECTURE = find_device("a100-sxm-80gb").compute_capability
COMMAND_OF_THE_PAGE = re.search(r"^    (lorabench estimate .*)$", (DOCS / "ground_truth.md").read_text(), re.MULTILINE)


def mistral_command(row: Row) -> str:
    """Return the page's command, which is the last QLoRA row's, turned into that of ``row``."""
    assert COMMAND_OF_THE_PAGE is not None
    said = COMMAND_OF_THE_PAGE[1].replace("--batch-size 8", f"--batch-size {row['batch_size']}")
    if row["prepare_kbit"] == "recast":
        return said.replace("--no-prepare-kbit", "--recast")
    if row["method"] == "qlora":
        return said
    said = said.replace("--no-prepare-kbit", "--dtype bfloat16 --mixed-precision no")
    if row["method"] == "lora":
        return said.replace("--method qlora", "--method lora")
    said = said.replace("--target-modules q_proj,k_proj,v_proj,o_proj --lora-dropout 0.1", "")
    return said.replace("--method qlora", "--method full")


def mistral_recipe(row: Row) -> Recipe:
    return make_recipe(**answer(mistral_command(row))["recipe"])


def compared(measured: int, estimated: int) -> Row:
    return {
        "measured": f"{measured:,}",
        "estimated": f"{estimated:,}",
        "error": f"{100 * (estimated / measured - 1):+.4f} %",
        "missing": f"{measured - estimated:,}",
    }


def test_the_page_says_what_was_measured_and_estimated_on_the_a100() -> None:
    peaks, kept = tables("ground_truth.md", "method")
    for row, peak, held_row in zip(A100, peaks, kept, strict=True):
        recipe = mistral_recipe(row)
        spec = find_model(recipe.model)
        recast = ", recast" if row["prepare_kbit"] == "recast" else ""
        named = {"method": row["method"] + recast, "batch": row["batch_size"]}
        assert peak == named | compared(
            int(row["peak_allocated_bytes"]),
            estimate_memory(ResolvedRecipe(spec, recipe), compute_capability=A100_ARCHITECTURE).peak_allocated_bytes,
        )
        assert held_row == named | compared(
            int(row["steady_allocated_bytes"]), held_between_steps(ResolvedRecipe(spec, recipe))
        )


def held_between_steps(resolved: ResolvedRecipe) -> int:
    terms = states(resolved, "cuda").terms
    kept = sum(term.bytes for term in terms if term.component != "gradients")
    return kept + workspaces(A100_ARCHITECTURE).bytes


def test_what_is_missing_is_the_last_batch_its_mask_and_what_blocks_are_larger_than_tensors() -> None:
    peaks, kept = tables("ground_truth.md", "method")
    for row in kept:
        assert 0 <= missing(row) - 3 * 8 * tokens(row) < 52 * 1024
    for row in peaks:
        tail = 0 if row["method"] == "full" else 2 * int(row["batch"]) * 32_000 * 4
        assert 0 <= missing(row) - 8 * tokens(row) - tail <= 6 * tokens(row) + 84 * 1024


def missing(row: Row) -> int:
    return int(row["missing"].replace(",", ""))


def tokens(row: Row) -> int:
    return int(row["batch"]) * 4096


def test_the_rehearsed_rows_quote_published_figures() -> None:
    """What they rehearse to needs software of that time: `benchmarks/published/reproduce.py`."""
    published = {
        ("4.48", "1", row["batch_size"], int(row["peak_allocated_bytes"]), int(row["steady_allocated_bytes"]))
        for row in A100
    }
    for row in measurements("a100_80gb_many.csv"):
        software = {"a100_80gb": "4.48", "a100_80gb_liger": "4.45"}.get(row["source"])
        if software and row["mem_peak_torch_mem_alloc_in_bytes"]:
            figures = row["mem_peak_torch_mem_alloc_in_bytes"], row["mem_torch_mem_alloc_in_bytes"]
            peak, steady = (int(float(figure)) for figure in figures)
            published.add((software, row["num_gpus"], row["per_device_train_batch_size"], peak, steady))
    rehearsed = [
        (row["transformers"], row["GPUs"], batch, int(peak.replace(",", "")), int(steady.replace(",", "")))
        for row in rows("ground_truth.md", "transformers")
        for batch, peak, steady in zip(
            *(row[column].split("<br>") for column in ("batch", "published peak", "published steady")), strict=True
        )
    ]
    assert len(rehearsed) >= 28
    assert set(rehearsed) <= published


def test_adapters_of_the_l40s_are_those_of_the_page() -> None:
    published = {row["experiment"]: row for row in measurements("l40s_llama32_3b_peft_methods.csv")}
    spec = find_model("meta-llama/Llama-3.2-3B")
    for row in rows("ground_truth.md", "experiment"):
        experiment = published[row["experiment"]]
        recipe = make_recipe(
            spec.name, rank=int(experiment["rank"]), target_modules=",".join(experiment["target_modules"].split())
        )
        assert list(row.values())[1:] == [
            f"{int(experiment['trainable_params']):,}",
            f"{ResolvedRecipe(spec, recipe).parameters.trainable:,}",
            f"{int(experiment['adapter_file_bytes']):,}",
            f"{adapter_file_bytes(ResolvedRecipe(spec, recipe)):,}",
        ]


@pytest.mark.parametrize(
    ("command", "shown"),
    re.findall(r"```console\n\$ ([^\n]+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL),
)
def test_the_readme_shows_what_each_command_prints(command: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert CliRunner().invoke(lorabench, shlex.split(command)[1:]).output == shown


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    # Three commands whose output is compared above, and a rehearsal, which takes a CUDA build of torch.
    assert len(re.findall(r"^```(console|text)$", page, re.MULTILINE)) == 4
    assert len(page.splitlines()) < 150
    for folder, name in [(ROOT, "README.md"), *((DOCS, path.name) for path in sorted(DOCS.glob("*.md")))]:
        for target in re.findall(r"\]\(([^)]+)\)", (folder / name).read_text(encoding="utf-8")):
            if not target.startswith("http"):
                path, _, anchor = target.partition("#")
                linked = folder / path if path else folder / name
                assert linked.exists(), f"{name} links to {target}"
                assert not anchor or anchor in anchors(linked), f"{name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of ``page``."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_plan_page_shows_what_plan_finds() -> None:
    page = (DOCS / "plan.md").read_text(encoding="utf-8")
    row = r"^\|(?: ([\w.-]+))? \| \d+ GB, ([\w-]+) \| (\w+)[^|]* \| (\d+) \| ([\d.]+ GiB) \| ([\d,]+) "
    found = re.findall(row, page, re.MULTILINE)
    assert len(found) == 6
    model = ""
    for named, gpu, method, batch, takes, speed in found:
        model = named or model
        ran = CliRunner().invoke(lorabench, ["plan", model, "--gpu", gpu, "--format", "json"])
        best = json.loads(ran.stdout)["choices"][0]
        assert (best["recipe"]["method"], best["recipe"]["batch_size"]) == (method.lower(), int(batch))
        assert f"{best['device_total_most_bytes'] / 2**30:.1f} GiB" == takes
        assert float(f"{best['throughput']['tokens_per_second']:.2g}") == float(speed.replace(",", ""))


def test_what_each_optimizer_takes_is_what_the_table_says() -> None:
    said = rows("optimizers.md", "optimizer")
    assert {row["optimizer"] for row in said} <= set(OPTIMIZERS)
    for row in said:
        assert row["package"] == OPTIMIZERS[row["optimizer"]].library.package
        for dtype in DTYPES[:2]:
            tensors = [TrainedTensors((4096, 4096), count, dtype) for count in (1, 31)]
            taken, parameters = optimizer_bytes(row["optimizer"], tensors, "cuda"), 32 * 4096 * 4096
            paged = f" + {taken.paged / parameters:.2f} paged" if taken.paged else ""
            assert row[f"kept, {dtype}"] == f"{taken.states / parameters:.2f}{paged}"
            assert row[f"besides, {dtype}"] == f"{taken.temporaries / parameters:.2f}"


def test_optimizers_are_left_out_for_the_reasons_that_are_given() -> None:
    said = {
        name.strip("`"): row["why"] for row in rows("optimizers.md", "left out") for name in row["left out"].split(", ")
    }
    assert said == {name: reason.rpartition(": use ")[0] for name, reason in LEFT_OUT.items()}
