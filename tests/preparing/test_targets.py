"""Tuning for a device that is not here takes neither torch nor the modules of ours that import it."""

import json
from pathlib import Path

from processes import run_python

TUNE = """
import json, sys
from grouped_conv.cli.main import main
from grouped_conv.preparing import targets

targets.DRIVER_NODES = ()  # a machine with a GPU has to ask torch whether it is the device
layer = "N=2 C=32 H=8 K=32 R=3 pad=1 groups=4"
main(["tune", "--layer", layer, "--device", "a100", "--limit", "1"], standalone_mode=False)
print(json.dumps([*sys.modules]))
"""
WITHOUT_TORCH = ("autotune", "kernels", "cli", "preparing", "_source_tree")


def test_the_parent_process_imports_no_torch(tmp_path: Path) -> None:
    output = run_python(TUNE, GROUPED_CONV_STORE=str(tmp_path / "store.sqlite3"))
    assert "pack" in output
    loaded = json.loads(output.splitlines()[-1])
    assert "torch" not in loaded
    ours = {name.split(".")[1] for name in loaded if name.startswith("grouped_conv.")}
    assert ours <= set(WITHOUT_TORCH)
    assert not {"grouped_conv.preparing.tuning", "grouped_conv.preparing.traced_problems"} & set(loaded)
