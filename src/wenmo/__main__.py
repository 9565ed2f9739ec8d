"""`python -m wenmo` is `wenmo`."""

from wenmo.cli import main

main()
