"""``python -m clipcheck`` is the command ``clipcheck``."""

from clipcheck.cli.app import main

main()
