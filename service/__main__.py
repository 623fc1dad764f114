"""`python -m service`."""

import os
import signal
import sys

if os.getpid() == 1:  # a container's first process: the kernel drops SIGTERM until somebody handles it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

if sys.stderr is None:  # closed: the next opened file would get descriptor 2 and receive our logs
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.set_inheritable(2, True)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - a number, for as long as the process lasts

from service.cli import main

sys.exit(main())
