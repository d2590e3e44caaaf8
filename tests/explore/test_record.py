"""When a trial's result is known, and when it is not."""

from pathlib import Path

import pytest

from edgeopt.explore.figures import Figures
from edgeopt.explore.record import TrialRecord, read_record, write_record
from edgeopt.explore.sweep import PlannedTrial, plan
from edgeopt.explore.trial import TrialResult, trial_folder

POINT = {"export.num_samples": 2}


def planned(project: Path, **more: bool) -> PlannedTrial:
    (trial,) = plan(project / "edgeopt.toml", ["arm64"], [POINT], **more)
    return trial


@pytest.fixture
def record(project: Path) -> TrialRecord:
    result = TrialResult("arm64", POINT, "ok", "", 1.5, "trials/x", Figures(metric=0.5, num_macs=7))
    return TrialRecord(planned(project).identity, 1, "here", result)


def test_record_is_read_as_it_was_written_when_nothing_changed(project: Path, record: TrialRecord) -> None:
    write_record(project, record)
    assert read_record(project, "arm64", POINT, planned(project).identity) == record


@pytest.mark.parametrize("name", ["net.py", "noise/preprocess.py", "edgeopt.toml"])
def test_record_is_unknown_when_a_file_of_the_trial_changes(name: str, project: Path, record: TrialRecord) -> None:
    write_record(project, record)
    path = project / name
    path.write_text(path.read_text().replace("num_golden = 4", "num_golden = 3") + "\n# changed\n")
    trial = planned(project)
    known = read_record(project, "arm64", POINT, trial.identity)
    assert known is None


def test_record_is_known_when_the_recipe_says_the_same_in_other_words(project: Path, record: TrialRecord) -> None:
    write_record(project, record)
    path = project / "edgeopt.toml"
    path.write_text(path.read_text() + "\n# changed\n")
    assert read_record(project, "arm64", POINT, planned(project).identity) == record


def test_record_is_unknown_when_instructions_are_asked_for(project: Path, record: TrialRecord) -> None:
    write_record(project, record)
    assert read_record(project, "arm64", POINT, planned(project, instructions=True).identity) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"identity": "x"}', '{"result": {}}'])
def test_record_is_unknown_when_its_file_is_damaged(text: str, project: Path, record: TrialRecord) -> None:
    write_record(project, record)
    (trial_folder(project, "arm64", POINT) / "trial.json").write_text(text)
    assert read_record(project, "arm64", POINT, record.identity) is None
