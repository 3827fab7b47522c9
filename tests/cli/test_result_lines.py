from __future__ import annotations

from msgspec.structs import replace

from lorabench.cli.result_lines import details
from tests.sample_records import sample_record


def test_verbose_lines_say_all_that_was_measured() -> None:
    record = sample_record()
    assert record.measurement is not None
    measured = replace(
        record.measurement,
        step_seconds=(0.1, 0.2, 0.2, 0.3),
        tokens_per_step=256,
        unpadded_tokens_per_step=200,
        loss_tokens_per_step=190,
        memory=replace(record.measurement.memory, peak_reserved_bytes=3 * 2**30),
        nvml_process_peak_bytes=7 * 2**29,
        rss_peak_bytes=2**30,
        mfu=0.31,
        hfu=0.414,
        energy_joules=102.4,  # over four steps of 256 tokens
        held_out_loss_before=6.91,
        held_out_loss_after=None,
        unstable=("its clocks were held down",),
    )
    assert details(replace(record, measurement=measured))[-8:] == [
        # Quarters between the four: 0.175 and 0.225.
        "step 200 ms, 95% interval 100 ms to 300 ms, interquartile range 50 ms",
        "tokens/s: 1,280 all, 1,000 without padding, 950 in the loss",
        "MFU 31.0%, HFU 41.4%",
        "peaks: 3.00 GiB reserved, 3.50 GiB in nvidia-smi, 1.00 GiB of host memory",
        "energy: 100.0 J per 1,000 tokens",
        "loss 6.93→5.09 from first to last step",
        "held-out loss 6.91→not finite",
        "unstable: its clocks were held down",
    ]


def test_what_was_not_measured_is_not_spoken_of() -> None:
    said = details(sample_record(outcome="oom"))
    assert len(said) == 2
