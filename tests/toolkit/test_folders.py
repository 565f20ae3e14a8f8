import pytest

from m2kit.errors import FolderError
from m2kit.folders import check_output


def test_an_output_is_checked_before_work_is_spent_on_it(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    check_output(tmp_path / "new" / "deep" / "a.png", ".png")
    for name, words in (
        ("a.jpg", r"ending in \.png"),
        ("folder.png", "is a folder"),
        ("file/a.png", "not a writable folder"),
    ):
        with pytest.raises(FolderError, match=words):
            check_output(tmp_path / name, ".png")
