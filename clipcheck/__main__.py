"""Run the command ``clipcheck`` as ``python -m clipcheck``."""

from clipcheck.cli.app import main

main()
