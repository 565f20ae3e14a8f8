import json
import subprocess
import sys

from m2kit.training.bench import entropy


def test_the_exact_entropy_of_2_to_the_18_codes_needs_little_memory():
    script = (
        "import json; from m2kit.training.bench.entropy import measure\n"
        "print(json.dumps(measure('exact, two halves of the bits', (8, 18, 16, 16))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, megabytes, _, of_mean = json.loads(done.stdout)
    assert 1 < megabytes < 1500  # the assignment of 2,048 tokens to all codes alone has 2,147
    assert seconds < 20
    assert 10 < of_mean < 12.5  # of 18 ln 2 nats


def test_the_table_has_a_row_for_each_form(capsys):
    entropy.main(bits=6, images=1, side=4)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("16 tokens of 6 bits")
    rows = [row.split("|")[1:-1] for row in rows[3:]]
    assert [row[0].strip() for row in rows] == list(entropy._FORMS)
    exact, bound, enumerated = (float(row[-1]) for row in rows)
    assert abs(exact - enumerated) < 1e-3
    assert bound >= exact - 1e-3
