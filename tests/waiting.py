"""A program that a signal finds inside of a library, with a process that it has started; for tests."""

import signal
import subprocess
import sys

from torch.distributed import TCPStore

from fldd_lightning.interrupted import interrupted_by_signals

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background
    with interrupted_by_signals(lambda signum: print(f"told {signum}", flush=True)):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("started", flush=True)
        TCPStore("127.0.0.1", 0, world_size=2, is_master=True)  # waits for another
