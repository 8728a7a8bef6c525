"""`python -m sercli` is `ser`."""

from sercli.cli import main

main()
