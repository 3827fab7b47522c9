"""The worker process: reads a `Job`, measures its recipe, and writes a `JobResult`.

It is forked from the `server`. If CUDA does not survive a fork, it is started as
``python -m lorabench.bench.running.worker JOB ANSWER``.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import msgspec

from lorabench.bench.machine.unpacking import complaint_about_unpacking
from lorabench.bench.measuring.measure import measure
from lorabench.bench.records.text import without_own_folders
from lorabench.bench.running.failures import answer_of
from lorabench.bench.running.jobs import Job, JobResult
from lorabench.bench.training.losses import complaint_about, complaint_about_adapters, complaint_about_text
from lorabench.estimator.errors import UserError
from lorabench.estimator.training.libraries import leave_out_hub_kernels


def main(job_path: str, answer_path: str) -> None:
    """Do the job in the file ``job_path``, and write the result to ``answer_path``, both as JSON."""
    job = msgspec.json.decode(Path(job_path).read_bytes(), type=Job)
    Path(answer_path).write_bytes(msgspec.json.encode(answer_job(job)))


def answer_job(job: Job) -> JobResult:
    """Measure the job's recipe and return the result, including any exception."""
    try:
        measurement = measure(job.resolved, job.settings, job.snapshot_path)
    except UserError as error:
        return JobResult(outcome="error", message=without_own_folders(str(error)))
    except Exception as error:
        return answer_of(error, job.settings.backend, traceback.format_exc())
    complaints = (
        complaint_about(measurement.losses),
        complaint_about_adapters(measurement.base_loss, measurement.adapted_loss),
        complaint_about_text(measurement.text_tokens, job.resolved.recipe),
        complaint_about_unpacking(job.resolved, job.settings.backend),
    )
    message = "; ".join(complaint for complaint in complaints if complaint) or None
    return JobResult(outcome="ok", message=message, measurement=measurement)


if __name__ == "__main__":
    leave_out_hub_kernels()
    main(*sys.argv[1:])
