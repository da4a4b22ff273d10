"""A process that misbehaves in the inspector's place: the name of the task says how."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from eddy.service.inspector import bound
from eddy.service.isolation import RESULT_FILE, STEP_FILE, Task


def main() -> None:
    """Reads the task as the inspector does, bounds itself as that does, and then does what its name says."""
    task = Task(**json.load(sys.stdin))
    bound(task)
    folder = Path(task.folder)
    if task.name == "eats memory":
        kept = [bytes(1 << 20) for _ in range(1 << 20)]
        print(len(kept))
    elif task.name == "crashes":
        ctypes.string_at(0)
    elif task.name == "aborts":
        print("terminate called after throwing an instance of 'std::bad_alloc'", flush=True)
        os.abort()
    elif task.name == "never ends":
        while True:
            pass
    elif task.name == "leaves a child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=False)
        Path(task.model).write_text(str(child.pid), encoding="ascii")
        child.wait()
    elif task.name == "fills the disk":
        with (folder / STEP_FILE).open("wb") as file:
            file.truncate(3 << 30)
    elif task.name == "says much":
        print("x" * 100_000, flush=True)
        print("the last words", flush=True)
        sys.exit(3)
    elif task.name == "writes half":
        (folder / RESULT_FILE).write_text('{"report": {', encoding="ascii")
    else:
        assert task.name == "says nothing"


if __name__ == "__main__":
    main()
