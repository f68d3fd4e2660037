"""Asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, `ok`, or `error WHY`.

Who asks S3 reads an object of its own, whose name is the third argument.
"""

import sys
import time


BUCKET = "sandbox-bucket"
OBJECT = sys.argv[3]


def rounds(ask):
    count, pause = int(sys.argv[1]), int(sys.argv[2]) / 1000
    for number in range(count):
        if number:
            time.sleep(pause)
        try:
            arn = ask()
            line = f"arn {arn}" if arn else "ok"
        except Exception as error:
            line = f"error {type(error).__name__}: {' '.join(str(error).split())}"
        print(line, flush=True)
    sys.exit(line.startswith("error"))
