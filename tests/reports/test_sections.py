from __future__ import annotations

import base64
import zlib
from typing import Any

import msgspec
import pytest

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.reports.runs import MOST_STEPS, Run, arrange
from lorabench.reports.sections import SECTIONS
from lorabench.reports.sections.accuracy import EDGES, accuracy, why_off
from lorabench.reports.sections.charts import pareto_front
from lorabench.reports.sections.comparison import comparison
from lorabench.reports.sections.environments import environments
from lorabench.reports.sections.headlines import Headline
from lorabench.reports.sections.learning import learning
from lorabench.reports.sections.memory import memory
from lorabench.reports.sections.records import records
from lorabench.reports.sections.speed import costs, speed
from lorabench.reports.sections.summary import summary
from lorabench.reports.subject import Subject
from tests.sample_records import as_rehearsed, sample_record

MIB = 2**20


def runs_of(*records: RunRecord) -> list[Run]:
    return arrange({"results": records})


def headlines(*records: RunRecord) -> dict[str, Headline]:
    return {headline.name: headline for headline in summary(Subject(runs_of(*records)))["headlines"]}


def test_the_headline_error_is_the_median_with_the_worst_named() -> None:
    estimates = {4: 101, 8: 98, 16: 103}
    shown = headlines(
        *[
            sample_record(rank=rank, predicted_peak_bytes=estimate * MIB, peak_allocated_bytes=100 * MIB)
            for rank, estimate in estimates.items()
        ]
    )
    assert shown["accuracy"].value == "2.00% off"
    assert shown["accuracy"].note == "Median of 3 runs; worst +3.00% (llama-2m lora r16)."


def test_the_headline_ratio_compares_recipes_that_differ_in_method_only() -> None:
    shown = headlines(
        sample_record(method="full", peak_allocated_bytes=400 * MIB),
        sample_record(method="full", batch_size=8, peak_allocated_bytes=900 * MIB),
        sample_record(rank=8, peak_allocated_bytes=150 * MIB),
        sample_record(rank=64, peak_allocated_bytes=250 * MIB),
        sample_record(method="qlora", rank=8, peak_allocated_bytes=100 * MIB),
    )
    assert shown["ratio"].value == "4.00 : 1.50 : 1"
    assert shown["ratio"].note == "0.39 GiB : 0.15 GiB : 100.0 MiB measured, llama-2m, rank 8, 1×256."


def test_without_three_measured_methods_there_is_no_ratio() -> None:
    assert "ratio" not in headlines(
        sample_record(method="full", outcome="oom"), sample_record(), sample_record(method="qlora")
    )


def test_the_fastest_run_is_named() -> None:
    shown = headlines(sample_record(rank=8, step_seconds=[0.5] * 3), sample_record(rank=9, step_seconds=[0.25] * 3))
    assert shown["fastest"].value == "1,024 tokens/s"
    assert "lora r9" in shown["fastest"].note
    assert "trusted" not in shown["fastest"].note


def test_the_fastest_run_is_marked_where_its_step_times_are_not_to_be_trusted() -> None:
    record = sample_record()
    assert record.measurement is not None
    record = msgspec.structs.replace(
        record, measurement=msgspec.structs.replace(record.measurement, unstable=("made up",))
    )
    assert headlines(record)["fastest"].note.endswith("Its step times are unreliable.")


def test_the_lowest_held_out_loss_is_among_runs_that_can_be_compared() -> None:
    losses = {("a", 1): 2.0, ("a", 2): 1.5, ("b", 1): 0.5}
    records = []
    for (model, rank), loss in losses.items():
        record = sample_record(model=model, rank=rank)
        assert record.measurement is not None
        learnt = msgspec.structs.replace(record.measurement, held_out_loss_before=3.0, held_out_loss_after=loss)
        records.append(msgspec.structs.replace(record, measurement=learnt))
    shown = headlines(*records)["learnt"]
    assert (shown.value, shown.note) == ("1.500", "a lora r2; 3.000 before training.")


def test_estimates_make_the_headlines_where_nothing_ran() -> None:
    spec, device = find_model("meta-llama/Llama-3.1-8B"), find_device("rtx-4090")
    shown = {headline.name: headline for headline in summary(Subject([], [spec], [device]))["headlines"]}
    assert list(shown) == ["fits", "ratio", "speed"]
    full, *longest = shown["fits"].value.split(" : ")
    assert full == "none"
    for method, length in zip(("lora", "qlora"), longest, strict=True):
        tokens = int(length.replace(",", ""))
        for seq_len, answer in ((tokens, True), (tokens + 128, False)):
            memory = estimate_memory(
                ResolvedRecipe(spec, make_recipe(spec.name, method=method, seq_len=seq_len)),
                compute_capability=device.compute_capability,
            )
            assert (verdict_and_margin(memory, device.memory_bytes)[0] == "fits") is answer, (method, seq_len)
    assert shown["speed"].value.startswith("– : ")
    assert shown["ratio"].note.endswith(" estimated, Llama-3.1-8B, rank 16, checkpointing, 1×2048.")


def test_runs_on_a_cpu_alone_ask_about_no_gpu() -> None:
    spec, runs = find_model("Qwen/Qwen2.5-0.5B"), runs_of(sample_record())
    for devices, asked in (([], False), ([find_device("t4")], True)):
        found = {headline.name for headline in summary(Subject(runs, [spec], devices))["headlines"]}
        assert ("fits" in found) is asked


def test_outcomes_are_counted() -> None:
    failed = [sample_record(rank=1, outcome="oom"), sample_record(rank=2, outcome="oom")]
    shown = summary(Subject(runs_of(*failed, sample_record(rank=3, outcome="timeout"), sample_record())))["runs"]
    assert {outcome: count for outcome, _, count in shown["outcomes"]} == {"oom": 2, "ok": 1, "timeout": 1}


def test_mixed_devices_and_versions_are_noticed() -> None:
    same = runs_of(sample_record(), sample_record(rank=8))
    assert environments(same)["differing"] == []
    assert len(environments(same)["environments"]) == 1
    mixed = environments(runs_of(sample_record(), sample_record(rank=8, backend="cuda")))
    assert mixed["differing"] == ["device", "memory", "CUDA", "driver"]
    assert [environment["count"] for environment in mixed["environments"]] == [1, 1]


def test_figures_hold_one_model_and_few_runs_on_one_scale() -> None:
    records = [sample_record(model=model, rank=rank) for model in ("a", "b") for rank in range(1, 31)]
    shown = memory(runs_of(*records))
    assert shown is not None
    assert [(figure["model"], figure["part"]) for figure in shown["figures"]] == [
        (model, f"{part} of 3") for model in ("a", "b") for part in (1, 2, 3)
    ]
    rows = [row["run"] for figure in shown["figures"] for row in figure["chart"]["rows"]]
    assert rows == list(range(60))
    assert len({figure["chart"]["longestBytes"] for figure in shown["figures"][:3]}) == 1


def test_only_components_with_bytes_are_shown_the_unknown_ones_last() -> None:
    record = sample_record()
    assert record.prediction is not None
    components = {"zeta": 5, "weights": 7, "gradients": 0, "logits": 1}
    changed = msgspec.structs.replace(record.prediction.memory, components=components)
    prediction = msgspec.structs.replace(record.prediction, memory=changed)
    shown = memory(runs_of(msgspec.structs.replace(record, prediction=prediction, measurement=None, outcome="error")))
    assert shown is not None
    assert [item["key"] for item in shown["legend"]] == ["weights", "logits", "zeta"]


def test_what_each_method_holds_adds_up_per_parameter() -> None:
    records = [sample_record(method=method, rank=rank) for method, rank in (("full", None), ("lora", 8), ("lora", 9))]
    shown = memory(runs_of(*records))
    assert shown is not None
    full, lora = shown["persistent"]
    parameters = records[0].prediction.parameters if records[0].prediction else None
    adapted = records[1].prediction.parameters if records[1].prediction else None
    assert parameters is not None
    assert adapted is not None
    counters = 1e-3  # the optimizer counts its steps, for each tensor
    assert full.per_parameter == pytest.approx(16, rel=counters)
    assert full.bytes == pytest.approx(16 * parameters.total, rel=counters)
    assert lora.bytes == pytest.approx(2 * parameters.total + 16 * adapted.adapter, rel=counters)
    assert lora.run.record.recipe.rank == 8
    assert lora.terms[0] == f"2 B × {parameters.total:,} (weights, bfloat16)"


def test_curves_of_a_figure_differ_in_their_strokes() -> None:
    shown = learning(
        runs_of(*[sample_record(method=method, rank=r) for method in ("lora", "qlora") for r in (1, 2, 3)])
    )
    assert shown is not None
    assert len({curve["dash"] for curve in shown["figures"][0]["chart"]["curves"]}) == 6


def test_long_runs_are_thinned_but_their_figures_come_from_all_steps() -> None:
    steps = 5 * MOST_STEPS - 3
    losses = [5.0 - step / steps for step in range(steps)]
    seconds = [1.0] * (steps - 1) + [2.0]
    [long] = runs_of(sample_record(losses=losses, step_seconds=seconds))
    [short] = runs_of(sample_record(losses=losses[:MOST_STEPS], step_seconds=seconds[:MOST_STEPS]))
    assert (short.every, short.shown_record) == (1, short.record)
    assert long.every == 5
    shown = long.shown_record.measurement
    assert shown is not None
    assert shown.losses == tuple(losses[::5])
    assert len(shown.step_seconds) == MOST_STEPS
    assert long.final_loss == losses[-1]
    assert long.record.measurement is not None
    assert len(long.record.measurement.losses) == steps
    for run, thinned in ((long, True), (short, False)):
        section = learning([run])
        assert section is not None
        assert section["thinned"] is thinned
        [entry] = unpacked(records([run])["blocks"][0])
        assert entry["every"] == run.every


def test_sections_without_anything_to_show_are_left_out() -> None:
    [failed] = runs_of(msgspec.structs.replace(sample_record(outcome="error"), prediction=None))
    shown = {section.name for section in SECTIONS if section.data(Subject([failed])) is not None}
    assert shown == {"summary", "claims", "failures", "environments", "records"}
    assert learning(runs_of(sample_record(losses=[None, None]))) is None
    assert speed(runs_of(sample_record(outcome="oom"))) is None
    assert comparison(runs_of(sample_record())) is None


def unpacked(packed: str) -> Any:
    return msgspec.json.decode(zlib.decompress(base64.b64decode(packed)))


def test_the_page_holds_every_record_whole_with_its_derivation() -> None:
    kept = [sample_record(rank=rank, outcome="oom" if rank % 7 == 0 else "ok") for rank in range(1, 67)]
    shown = records(runs_of(*kept))
    entries = [entry for block in shown["blocks"] for entry in unpacked(block)]
    assert [entry["record"] for entry in entries] == [
        msgspec.json.decode(msgspec.json.encode(record)) for record in kept
    ]
    for entry in (entries[0], entries[65]):
        by_component = {part["component"]: part["lines"] for part in entry["derivation"]["sections"]}
        adapters = sum(line["bytes"] for line in by_component["adapters"])
        assert adapters == 4 * entry["record"]["prediction"]["parameters"]["adapter"]


def test_the_table_has_a_value_for_every_run_and_no_empty_column() -> None:
    kept = [sample_record(rank=1), sample_record(rank=2, outcome="timeout")]
    table = unpacked(records(runs_of(*kept))["table"])
    values = dict(zip((column["key"] for column in table["columns"]), table["values"], strict=True))
    assert values["rank"] == ["1", "2"]
    assert values["outcome"] == ["ok", "timeout"]
    assert values["final_loss"] == [kept[0].measurement.losses[-1] if kept[0].measurement else 0, None]
    assert "mfu" not in values
    assert all(len(column) == 2 and any(value is not None for value in column) for column in values.values())


def test_the_distribution_of_errors_counts_every_run_once() -> None:
    estimates = {1: 100, 2: 96, 3: 103, 4: 130, 5: 100}
    shown = accuracy(
        runs_of(
            *[
                sample_record(rank=rank, predicted_peak_bytes=estimate * MIB, peak_allocated_bytes=100 * MIB)
                for rank, estimate in estimates.items()
            ]
        )
    )
    assert shown is not None
    chart = shown["distribution"]["chart"]
    counted = {name: count for name, count in zip(chart["ranges"], chart["counts"]["lora"], strict=True) if count}
    assert counted == {"−0.5% to +0.5%": 2, "−5% to −2%": 1, "+2% to +5%": 1, f"above +{100 * EDGES[-1]:g}%": 1}
    assert shown["scatter"]["caption"].startswith("5 runs: 2 within 1%, 4 within 5%.")
    assert [run.record.recipe.rank for run, _ in shown["worst"]] == [4, 2, 3]


def test_the_reason_names_the_component_that_is_furthest_off() -> None:
    record = sample_record(predicted_peak_bytes=100 * MIB, peak_allocated_bytes=100 * MIB)
    assert record.measurement is not None
    memory = record.measurement.memory
    components = memory.components | {"logits": memory.components["logits"] + 5}
    changed = msgspec.structs.replace(memory, components=components, phase="forward")
    measurement = msgspec.structs.replace(record.measurement, memory=changed)
    [run] = runs_of(msgspec.structs.replace(record, measurement=measurement))
    reason = why_off(run)
    assert reason.startswith("peak estimated in backward, measured in forward; logits: ")
    assert reason.endswith(" measured, −5 bytes")


def test_a_choice_costs_what_pairs_that_differ_in_it_alone_say() -> None:
    def run(peak: int, seconds: float, **options: Any) -> RunRecord:
        return sample_record(peak_allocated_bytes=peak * MIB, step_seconds=[seconds] * 3, **options)

    quantized = run(80, 2.5, method="qlora", gradient_checkpointing=True)
    assert quantized.measurement is not None
    unstable = msgspec.structs.replace(quantized.measurement, unstable=("clocks changed",))
    unsteady = msgspec.structs.replace(quantized, measurement=unstable)
    found = {
        cost.choice: cost
        for cost in costs(
            runs_of(
                run(200, 1.0, gradient_checkpointing=False),
                run(100, 1.25, gradient_checkpointing=True),
                run(150, 1.0, gradient_checkpointing=False, batch_size=4),
                run(110, 1.25, gradient_checkpointing=True, rank=64),
                unsteady,
            )
        )
    }
    checkpointing = found["Gradient checkpointing, off → on"]
    assert (checkpointing.pairs, checkpointing.unstable, checkpointing.memory) == (1, 0, -0.5)
    assert checkpointing.speed == pytest.approx(-0.2)
    assert found["LoRA → QLoRA"].memory == pytest.approx(-0.2)
    assert (found["LoRA → QLoRA"].pairs, found["LoRA → QLoRA"].unstable) == (1, 1)
    assert found["LoRA → QLoRA"].speed == pytest.approx(-0.5)
    assert found["Rank 16 → 64"].memory == pytest.approx(0.1)
    assert "full → LoRA" not in found


def test_nothing_on_the_front_is_beaten_at_both() -> None:
    places = {1: (10, 5.0), 2: (20, 9.0), 3: (20, 8.0), 4: (30, 7.0), 5: (40, 9.5)}
    runs = runs_of(*[sample_record(rank=rank) for rank in places])

    def place(which: int) -> Any:
        return lambda run: places[run.record.recipe.rank][which]

    front = pareto_front(runs, place(0), place(1), highest=True)
    assert [run.record.recipe.rank for run in front] == [1, 2, 5]
    front = pareto_front(runs, place(0), place(1), highest=False)
    assert [run.record.recipe.rank for run in front] == [1]


def test_folders_are_compared_with_the_first() -> None:
    old = [sample_record(rank=rank, peak_allocated_bytes=100 * MIB) for rank in (1, 2, 3)]
    new = [sample_record(rank=rank, peak_allocated_bytes=(100 + rank) * MIB) for rank in (2, 3, 4)]
    shown = comparison(arrange({"before": old, "after": new}))
    assert shown is not None
    [pair] = shown["pairs"]
    assert (shown["before"], pair["after"], pair["recipes"]) == ("before", "after", "2 recipes")
    peaks = {row["name"]: (row["verdict"], row["change"]) for row in pair["rows"] if row["metric"] == "peak memory"}
    assert {verdict for verdict, _ in peaks.values()} == {"regression"}
    assert sorted(change for _, change in peaks.values()) == pytest.approx([0.02, 0.03])
    assert [len(names) for names in pair["only"].values()] == [1, 1]
    charts = {chart["chart"]["x"]["kind"]: chart["chart"]["points"]["lora"] for chart in pair["charts"]}
    assert sorted(point[1:] for point in charts["bytes"]) == [(100 * MIB, 102 * MIB), (100 * MIB, 103 * MIB)]


def test_warnings_count_what_is_unstable_and_failed() -> None:
    record = sample_record()
    assert record.measurement is not None
    shaky = msgspec.structs.replace(record.measurement, unstable=("clocks changed",))
    runs = runs_of(
        msgspec.structs.replace(record, measurement=shaky),
        sample_record(rank=2),
        sample_record(rank=3, outcome="skipped"),
        sample_record(rank=4, outcome="oom"),
    )
    shown = summary(Subject(runs))["runs"]
    assert (shown["unstable"], shown["timed"], shown["failed"]) == (1, 2, 1)
    assert ("skipped", "skipped", 1) in shown["outcomes"]


def test_rehearsals_are_in_the_memory_part_and_never_in_speed_loss_or_accuracy() -> None:
    runs = runs_of(
        *(as_rehearsed(sample_record(backend="cuda", method=method)) for method in ("full", "lora", "qlora"))
    )
    subject = Subject(runs)
    shown = {section.name for section in SECTIONS if section.data(subject) is not None}
    assert "memory" in shown
    assert not shown & {"accuracy", "speed", "learning", "failures", "comparison"}
    told = memory(runs)
    assert told is not None
    assert told["answers"] == ["estimated", "rehearsed"]
    [figure] = told["figures"]
    assert figure["caption"].startswith("Rehearsed peaks: ")
    assert summary(subject)["runs"]["outcomes"] == [("ok", "rehearsed", 3)]
    assert not any(name in ("accuracy", "ratio", "fastest", "learnt") for name in headlines(*(r.record for r in runs)))


def test_the_table_of_runs_names_rehearsals_and_their_peaks() -> None:
    measured = sample_record(backend="cuda", peak_allocated_bytes=100 * MIB)
    rehearsed = as_rehearsed(sample_record(backend="cuda", rank=8, peak_allocated_bytes=98 * MIB))
    told = records(runs_of(measured, rehearsed))
    shown = [column.title for column in told["plain"]["columns"]]
    rows = [dict(zip(shown, row, strict=True)) for row in told["plain"]["rows"]]
    assert [row["Outcome"] for row in rows] == ["rehearsed", "ok"]
    assert [row["Rehearsed peak"] for row in rows] == ["98.0 MiB", "–"]
    assert [row["Rehearsed reserved"] for row in rows] == ["98.0 MiB", "–"]
    assert [row["Measured peak"] for row in rows] == ["–", "100.0 MiB"]
    assert [row["Tokens/s"] == "–" for row in rows] == [True, False]
