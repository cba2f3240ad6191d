"""What the tests of all commands share."""

from collections.abc import Iterator

import pytest

from voxelwave.apps.batch import run
from voxelwave.runs.workers import InProcess


@pytest.fixture(scope="session", autouse=True)
def _one_job_in_this_process() -> Iterator[None]:
    """A batch with one job runs in this process, since a new one loads torch again; test_run.py tests processes."""
    open_workers = run._open_workers

    def here_if_one(how, folder):
        return InProcess() if how.cluster is None and how.jobs in (None, 1) else open_workers(how, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_open_workers", here_if_one)
        yield
