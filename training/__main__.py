"""`python -m training`."""

import signal

from training.cli import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half written is removed
main()
