"""`python -m grouped_conv`: the grouped-conv command where its script is not on the PATH."""

from grouped_conv.cli.main import main

if __name__ == "__main__":
    main(prog_name="grouped-conv")
