"""The frames of a series become volumes with one phase each, in the order of the phases, or the series is refused."""

import numpy as np
import pydicom
import pytest

from voxelwave.volumes import read_volume

SLICES, TIMES = 4, 3
ORDERS = {
    "the last time first": [(k, t) for t in reversed(range(TIMES)) for k in range(SLICES)],
    "slice by slice": [(k, t) for k in range(SLICES) for t in range(TIMES)],
    "slice by slice, the last time first": [(k, t) for k in range(SLICES) for t in reversed(range(TIMES))],
    "at random": [(int(n) % SLICES, int(n) // SLICES) for n in np.random.default_rng(3).permutation(SLICES * TIMES)],
}
# the attribute that distinguishes the times: its sequence, its keyword, and its value at each time
PHASES = {
    "temporal position": ("FrameContentSequence", "TemporalPositionIndex", (1, 2, 3)),
    "trigger delay": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (9.0, 85.5, 110.0)),
    "inversion time": ("MRModifierSequence", "InversionTimes", ([90.0], [500.0], [1100.0])),
    "echo time": ("MREchoSequence", "EffectiveEchoTime", (5.0, 12.5, 110.0)),
}


def _describe(holding, phase):
    sequence, keyword, values = PHASES[phase]

    def describe(group, time):
        if sequence in group:
            setattr(group[sequence][0], keyword, values[time])
        else:
            setattr(group, sequence, holding(**{keyword: values[time]}))

    return describe


def _times(path):
    array = read_volume(path).array
    assert array.shape[2:] == (SLICES, TIMES)
    assert (array % 1000 == 10 * np.arange(SLICES)[:, None]).all()  # each slice is at its position
    times = array // 1000
    assert (times == times[:1, :1, :1]).all()  # each volume has one time
    return times[0, 0, 0].tolist()


@pytest.mark.filterwarnings("ignore::voxelwave.volumes.VolumeWarning")
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("phase", sorted(PHASES))
def test_the_frames_of_an_enhanced_file_are_in_the_order_of_their_phase(
    tmp_path, write_enhanced, holding, phase, order, indexed
):
    dimension = PHASES[phase][1] if indexed else None
    write_enhanced(tmp_path / "e.dcm", ORDERS[order], _describe(holding, phase), dimension=dimension)
    assert _times(tmp_path / "e.dcm") == [0, 1, 2]


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_dimension_indices_suffice(tmp_path, write_enhanced, order):
    write_enhanced(tmp_path / "e.dcm", ORDERS[order], lambda group, time: None, dimension="TriggerTime")
    assert _times(tmp_path / "e.dcm") == [0, 1, 2]


def test_trigger_delays_may_differ_from_slice_to_slice_but_their_order_counts(tmp_path, write_enhanced, holding):
    delays = iter(np.random.default_rng(0).uniform(0, 40, SLICES * TIMES))

    def describe(group, time):
        delay = 100 * time + float(next(delays))
        group.CardiacSynchronizationSequence = holding(NominalCardiacTriggerDelayTime=delay)

    write_enhanced(tmp_path / "e.dcm", ORDERS["at random"], describe)
    assert _times(tmp_path / "e.dcm") == [0, 1, 2]


def test_frames_that_nothing_distinguishes_are_refused_unless_their_order_is_regular(tmp_path, write_enhanced):
    write_enhanced(tmp_path / "regular.dcm", ORDERS["slice by slice"], lambda group, time: None)
    assert _times(tmp_path / "regular.dcm") == [0, 1, 2]
    write_enhanced(tmp_path / "mixed.dcm", ORDERS["at random"], lambda group, time: None)
    with pytest.raises(ValueError, match="do not distinguish the volumes"):
        read_volume(tmp_path / "mixed.dcm")


@pytest.mark.parametrize("phase", ["temporal position", "echo time"])
def test_one_frame_for_each_slice_must_be_of_one_phase(tmp_path, write_enhanced, holding, phase):
    frames = [(0, 0), (1, 0), (2, 1), (3, 1)]
    write_enhanced(tmp_path / "e.dcm", frames, _describe(holding, phase), dimension=PHASES[phase][1])
    with pytest.raises(ValueError, match="must hold one phase at every position"):
        read_volume(tmp_path / "e.dcm")


def test_one_frame_for_each_slice_may_have_several_constant_indices(tmp_path, write_enhanced):
    def edit(image):
        for group in image.PerFrameFunctionalGroupsSequence:
            group.FrameContentSequence[0].DimensionIndexValues += [7]
        image.DimensionIndexSequence.append(image.DimensionIndexSequence[-1])

    write_enhanced(
        tmp_path / "e.dcm", [(k, 0) for k in range(4)], lambda g, t: None, dimension="TriggerTime", edit=edit
    )
    assert read_volume(tmp_path / "e.dcm").shape == (5, 4, 4)


def test_a_classic_cine_whose_numbers_mix_its_phases_follows_the_trigger(tmp_path, write_classic):
    order = ORDERS["at random"]
    stored = np.array([np.full((4, 5), 10 * k + 1000 * t, np.uint16) for k, t in order])

    def edit(image, number):
        k, time = order[number]
        image.ImagePositionPatient = [-10.0, -20.0, 5.0 + 3 * k]
        image.CardiacNumberOfImages, image.TriggerTime = TIMES, 30 * time + k

    write_classic(tmp_path / "cine", stored, edit=edit)
    times = read_volume(tmp_path / "cine").array // 1000
    assert (times == times[:1, :1, :1]).all()


@pytest.mark.parametrize(
    "tag", ["TriggerTime", "NominalPercentageOfCardiacPhase", "AcquisitionTime", "ContentTime", None]
)
def test_classic_images_whose_numbers_mix_the_phases_follow_a_time_or_are_refused(tmp_path, write_classic, tag):
    order = ORDERS["at random"]
    stored = np.array([np.full((4, 5), 10 * k + 1000 * t, np.uint16) for k, t in order])

    def edit(image, number):
        k, time = order[number]
        image.ImagePositionPatient = [-10.0, -20.0, 5.0 + 3 * k]
        for name in ("AcquisitionTime", "ContentTime"):
            setattr(image, name, "101500")
        if tag is not None:
            setattr(image, tag, f"10{15 + time}00" if tag.endswith("nTime") or tag == "ContentTime" else 10.0 * time)

    write_classic(tmp_path / "in", stored, edit=edit)
    if tag is None:
        with pytest.raises(ValueError, match="do not distinguish the volumes"):
            read_volume(tmp_path / "in")
        return
    times = read_volume(tmp_path / "in").array // 1000
    assert (times == times[:1, :1, :1]).all()
    assert sorted(set(times.ravel())) == list(range(TIMES))


@pytest.mark.parametrize("slope", ["nan", "inf"])
def test_a_rescale_slope_that_is_not_finite_is_refused(tmp_path, write_classic, slope):
    def edit(image, number):
        image.RescaleIntercept = 0
        image.add_new("RescaleSlope", "DS", "1")
        image["RescaleSlope"]._value = float(slope)

    write_classic(tmp_path / "in", np.zeros((3, 4, 5), np.uint16), edit=edit)
    with pytest.raises(ValueError, match="RescaleSlope"):
        read_volume(tmp_path / "in")


def test_an_empty_rescale_slope_is_1_and_a_file_without_preamble_is_read(tmp_path, write_classic):
    stored = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)

    def edit(image, number):
        image.Modality, image.RescaleIntercept, image.RescaleSlope = "CT", -5, None

    write_classic(tmp_path / "in", stored, edit=edit)
    expected = read_volume(tmp_path / "in")
    assert expected.array.min() == -5
    for file in (tmp_path / "in").iterdir():
        image = pydicom.dcmread(file)
        del image.file_meta
        image.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(read_volume(tmp_path / "in").array, expected.array)
