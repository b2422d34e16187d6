"""`grouped-conv` inside the test's own process."""

import json
from typing import Any

from click.testing import CliRunner, Result

from grouped_conv.cli.main import main


def invoke(*arguments: object) -> Result:
    """Run `grouped-conv ARGUMENTS`."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def in_json(*arguments: object) -> Any:
    """The last object that the command prints with `--json`."""
    result = invoke(*arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout[("\n" + result.stdout).rindex("\n{") :])


def refusal(result: Result) -> str:
    """The one line on stderr by which a command refuses what a user got wrong."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("grouped-conv: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
