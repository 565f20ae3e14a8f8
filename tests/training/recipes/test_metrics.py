import pytest

from m2kit.errors import InputError
from m2kit.training.recipes.metrics import read_metrics

WHOLE = "epoch,bits\n0,7.5\n1,3.25\n"


def test_rows_are_read_as_numbers_whatever_the_order_of_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("bits,epoch\n7.5,0\ninf,2\n")
    assert read_metrics(path, ["bits"]) == [
        {"epoch": 0, "bits": 7.5},
        {"epoch": 2, "bits": float("inf")},
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected the columns bits, epoch, found none"),
        ("epoch\n0\n", "expected the columns bits, epoch, found epoch"),
        ("epoch,bits,odd\n0,1,2\n", "found epoch, bits, odd"),
        ("epoch,bits,bits\n0,1,2\n", "found epoch, bits, bits"),
        (WHOLE + "2\n", "line 4: expected 2 values, found 1"),
        (WHOLE + "2,1,1\n", "line 4: expected 2 values, found 3"),
        (WHOLE + "2,\n", "line 4, bits: expected a number, found ''"),
        (WHOLE + "two,1\n", "line 4, epoch: expected a number, found 'two'"),
        (WHOLE + "1,1\n", "expected growing whole numbers in the column epoch"),
        (WHOLE + "2.5,1\n", "expected growing whole numbers in the column epoch"),
        (WHOLE + "nan,1\n", "expected growing whole numbers in the column epoch"),
        (WHOLE + "inf,1\n", "expected growing whole numbers in the column epoch"),
        ("epoch,bits\n-1,1\n", "expected growing whole numbers in the column epoch"),
        (WHOLE + '2,"1', "unexpected end of data"),
        (WHOLE + "2,\0\n", "is damaged"),
        (b"\xff\xfe" + WHOLE.encode(), "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_place(tmp_path, text, complaint):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_metrics(path, ["bits"])
    message = str(caught.value)
    assert "\n" not in message
    assert complaint in message
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("start again in another folder")


def test_a_folder_of_that_name_is_damage_too(tmp_path):
    with pytest.raises(InputError, match="is damaged"):
        read_metrics(tmp_path, ["bits"])
