"""Run the commands of a JSON list in this process, one after the other, each as `python FILE ARGUMENTS` would.

One process imports the libraries once; its hub cache (environment) holds the small stand-ins under the real names.
"""

import glob
import json
import runpy
import sys
import traceback
from pathlib import Path

results = []
for command in json.loads(sys.argv[1]):
    sys.argv = [name for word in command for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    sys.path[0] = str(Path(command[0]).resolve().parent)
    status = 0
    print(f"$ {' '.join(command)}", flush=True)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stopped:
        status = stopped.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    results.append(status)
print("STATUS " + json.dumps(results))
