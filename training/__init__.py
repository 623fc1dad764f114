"""From a table to a model file."""

import os

# Read when torch is first imported. Threads that wait for the next small operation should sleep: spinning, the default, made a
# fit take 52 s instead of 19 s where another process used the same two cores, as it does in a container with a CPU limit.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
