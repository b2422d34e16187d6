"""The count of the code, on a small tree."""

import json

from click.testing import CliRunner

from grouped_conv.bench import code_size

KERNEL = """import triton


@triton.jit
def kernel(
    x_ptr,
    y_ptr,
):
    pass


def planner():
"""


def test_what_is_counted(tmp_path):
    for top in code_size.TOPS:
        (tmp_path / top).mkdir()
    (tmp_path / "kernels" / "one.py").write_text(KERNEL + "    pass\n" * 60)
    (tmp_path / "tests" / "test_one.py").write_text("\n" * 401)
    for index in range(16):
        (tmp_path / "autotune" / f"module{index}.py").write_text("import sys\n")
    (tmp_path / "grouped_conv" / "autotune").symlink_to(tmp_path / "autotune", target_is_directory=True)
    result = CliRunner().invoke(code_size.main, [str(tmp_path), "--json"])
    assert json.loads(result.stdout) == {
        "lines": {"kernels": 72, "autotune": 16, "tests": 401, "source": 88},
        "device code": {"lines": 5, "parameters": 4, "parameter share": 0.8},
        "functions over 60 lines": {"kernels/one.py:planner": 61},
        "files over 400 lines": {"tests/test_one.py": 401},
        "folders with over 15 modules": {"autotune": 16},
    }
    table = CliRunner().invoke(code_size.main, [str(tmp_path)])
    assert "kernels/one.py:planner" in table.stdout
