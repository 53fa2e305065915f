"""``python -m clipcheck`` is the command ``clipcheck``."""

from clipcheck.cli import main

main()
