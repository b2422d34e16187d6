"""The command group: lazy commands, and every user error as one line on stderr with exit code 2."""

import sys
import types

import click
import pytest
from command_line import invoke as call
from command_line import refusal
from processes import run_python

import grouped_conv
from grouped_conv.cli import main as cli


def refuse(error: BaseException) -> click.Command:
    @click.command()
    def command():
        raise error

    return command


@pytest.fixture
def invoke(monkeypatch):
    """Runs `grouped-conv ARGUMENTS`; `commands` become sub-commands of those names."""

    module = types.ModuleType("commands_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def run(*arguments: str, **commands: object):
        for name, command in commands.items():
            setattr(module, name, command)
            monkeypatch.setitem(cli._COMMANDS, name, f"{module.__name__}:{name}")
        return call(*arguments)

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("groups=3 does not divide\n 256 channels"), "groups=3 does not divide 256 channels"),
        (ValueError(), "ValueError"),
        (NotImplementedError("dtype int8"), "dtype int8"),
        (FileNotFoundError(2, "No such file or directory", "cat.png"), "cat.png: No such file or directory"),
        (OSError("not an image"), "not an image"),
        (click.BadParameter("no device named h900"), "Invalid value: no device named h900"),
        (click.ClickException("no store"), "no store"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_user_errors_are_one_line(invoke, error, line):
    assert refusal(invoke("fail", fail=refuse(error))) == f"grouped-conv: error: {line}\n"


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"]])
def test_bad_usage_is_one_line(invoke, arguments):
    assert refusal(invoke(*arguments)).startswith("grouped-conv: error: No such ")


def test_traceback_flag_also_shows_where(invoke):
    result = invoke("--traceback", "fail", fail=refuse(ValueError("batch=0")))
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback ")
    assert result.stderr.endswith("\ngrouped-conv: error: batch=0\n")


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("x"), AssertionError("x"), KeyError("x")])
def test_faults_of_our_own_are_not_hidden(invoke, error):
    assert invoke("fail", fail=refuse(error)).exception is error


def test_exit_codes(invoke):
    @click.command()
    @click.pass_context
    def leave(ctx):
        ctx.exit(3)

    assert invoke("leave", leave=leave).exit_code == 3
    assert invoke("stop", stop=refuse(KeyboardInterrupt())).exit_code == 130
    assert invoke("done", done=click.Command("done", callback=lambda: ["rows"])).exit_code == 0
    assert invoke().exit_code == 2  # prints the help


@pytest.mark.smoke
@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_commands_exist_and_explain_themselves(invoke, name):
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"grouped-conv {name}" in result.output or f"main {name}" in result.output
    assert isinstance(cli.main.get_command(click.Context(cli.main), name), click.Command)


def test_help_lists_every_command(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.output for name in cli._COMMANDS)


def test_version_loads_neither_torch_nor_triton():
    code = (
        "import sys; sys.argv = ['grouped-conv', '--version']; from grouped_conv.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'triton', 'numpy', 'pandas', 'rich'} & set(sys.modules)))"
    )
    assert run_python(code) == f"grouped-conv, version {grouped_conv.__version__}\n[]\n"
