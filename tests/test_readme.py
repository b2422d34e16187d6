"""README's commands are the ones that the checks run."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_checks_run_readmes_test_command() -> None:
    readme, checks = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    main_job, tests = (line.split(" && ") for line in lines)
    assert main_job[-2:] == ["grouped-conv tune alexnet", "grouped-conv run alexnet"]
    assert tests[-1] in checks
    assert (ROOT / "docs" / "groups.svg").exists()
