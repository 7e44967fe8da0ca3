"""`python -m flawscope`: the command line, where the console script is not on the path."""

from flawscope.cli import main

main()
