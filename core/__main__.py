"""`python -m flawscope`: the command line, also where the console script is not on PATH."""

from flawscope.cli import main

main()
