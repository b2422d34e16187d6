"""README's two commands do what they say, and the checks run the second one as it stands there."""

from checkout import ROOT

README = (ROOT / "README.md").read_text()
CHECKS = (ROOT / ".ci" / "run").read_text()


def test_readme_has_the_two_commands() -> None:
    main_job, tests = (line.split(" && ") for line in README.splitlines() if line.startswith("python3 -m venv"))
    assert main_job[-2:] == ["grouped-conv tune alexnet", "grouped-conv run alexnet"]
    assert tests[-1] == "python -m pytest -q -n 2"
    assert "-e '.[test]'" in tests[-2]
    assert (ROOT / "docs" / "groups.svg").exists()


def test_the_checks_take_the_test_command_from_readme() -> None:
    """`.ci/readme-tests` runs the one line of README that ends in pytest, whatever else it says."""
    script = (ROOT / ".ci" / "readme-tests").read_text()
    assert ".ci/readme-tests" in CHECKS
    assert "README.md" in script
    assert "pytest" in script
    assert "-m pytest -q -n 2" not in script, "the command must come from README"
