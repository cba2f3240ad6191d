"""Archives in place of folders, and what is refused in them."""

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from voxelwave.runs.archives import is_archive, original_of, unpacked


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert list((tmp_path / "temporary").iterdir()) == []  # nothing is left behind, also after an error


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *infos: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for info, content in infos:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_the_content_is_there_within_the_block(suffix, tmp_path):
    members = {"a/one": b"1", "a/deep/two": b"22"}
    path = tmp_path / f"x{suffix}"
    if suffix == ".zip":
        zipped(path, members)
    else:
        tarred(path, *((tarfile.TarInfo(name), content) for name, content in members.items()))
    assert is_archive(path)
    with unpacked(path) as folder:
        assert folder.name == "a"  # the only subfolder
        assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {"one": b"1", "two": b"22"}
        assert original_of(folder / "one") == path
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert not folder.exists()
    assert original_of(folder / "one") == folder / "one"


def test_an_archive_of_one_file_is_that_file(tmp_path):
    with unpacked(zipped(tmp_path / "x.zip", {"a/scan.nii": b"1"})) as found:
        assert found.name == "scan.nii"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "a/.."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_out_of_the_folder_is_refused(name, kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(path, {"good": b"1", name: b"2"})
    else:
        tarred(path, (tarfile.TarInfo("good"), b"1"), (tarfile.TarInfo(name), b"2"))
    with pytest.raises(ValueError, match="a path out of the folder"), unpacked(path):
        pass
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="a link or a device"), unpacked(tarred(tmp_path / "x.tar", (info, b""))):
        pass


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="a link or a device"), unpacked(tmp_path / "x.zip"):
        pass


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.runs.archives._FREE_SIZE", 1 << 16)
    bomb = zipped(tmp_path / "x.zip", {"zeros": bytes(1 << 23)})
    with pytest.raises(ValueError, match="expands to more"), unpacked(bomb):
        pass
    tar = tarred(tmp_path / "x.tar.gz", (tarfile.TarInfo("zeros"), bytes(1 << 23)))
    with pytest.raises(ValueError, match="expands to more"), unpacked(tar):
        pass


def test_a_bomb_whose_headers_tell_its_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.runs.archives._FREE_SIZE", 1 << 16)
    monkeypatch.setattr("voxelwave.runs.archives._copy", None)
    bomb = zipped(tmp_path / "x.zip", {"zeros": bytes(1 << 23)})
    with pytest.raises(ValueError, match="expands to more"), unpacked(bomb):
        pass


def test_a_member_longer_than_its_header_says_is_refused(tmp_path):
    content = zipped(tmp_path / "x.zip", {"a": os.urandom(4000)}).read_bytes()
    start = content.rfind(b"PK\x01\x02")  # the central directory: the size at offset 24
    (tmp_path / "x.zip").write_bytes(content[: start + 24] + (10).to_bytes(4, "little") + content[start + 28 :])
    with pytest.raises(ValueError, match=r"x\.zip"), unpacked(tmp_path / "x.zip"):
        pass


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.xz"])
def test_a_damaged_archive_is_one_clear_error(name, tmp_path):
    (tmp_path / name).write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="is damaged or no archive"), unpacked(tmp_path / name):
        pass


def test_a_cut_archive_is_one_clear_error(tmp_path):
    for path in (
        zipped(tmp_path / "x.zip", {"a": os.urandom(5000)}),
        tarred(tmp_path / "x.tar.gz", (tarfile.TarInfo("a"), os.urandom(5000))),
    ):
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(ValueError, match="is damaged or no archive"), unpacked(path):
            pass


def test_a_name_twice_is_refused(tmp_path):
    path = tarred(tmp_path / "x.tar", (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2"))
    with pytest.raises(ValueError, match="twice"), unpacked(path):
        pass
