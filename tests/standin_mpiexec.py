"""A stand-in for mpiexec without MPI: starts COUNT copies of COMMAND, all on this machine.

    python standin_mpiexec.py -n COUNT [--ppn 1] [--cpu-bind none] ... COMMAND ARGUMENTS...

Other options are ignored.
"""

import argparse
import subprocess
import sys

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int)
    for ignored in ("--ppn", "--cpu-bind", "--depth", "--hostfile"):
        parser.add_argument(ignored)
    parser.add_argument("--envall", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    print("stand-in for mpiexec:", args.n, "times", *args.command, file=sys.stderr)
    started = [subprocess.Popen(args.command) for _ in range(args.n)]
    sys.exit(max(one.wait() for one in started))
