from dataclasses import replace

import pytest

from m2kit.errors import InputError
from m2kit.training.recipes.run_folder import open_run


def test_a_run_is_resumed_only_when_asked_and_with_its_own_settings(tmp_path, ar_settings):
    settings = ar_settings()
    with pytest.raises(InputError, match="no run to resume"):
        open_run(tmp_path / "run", settings, resume=True)
    assert open_run(tmp_path / "run", settings, resume=False) is None
    assert open_run(tmp_path / "run", settings, resume=True) is None  # killed before one epoch
    with pytest.raises(InputError, match="add --resume"):
        open_run(tmp_path / "run", settings, resume=False)
    with pytest.raises(InputError, match=r"seed 3 \(now 4\)"):
        open_run(tmp_path / "run", replace(settings, seed=4), resume=True)
