#!/bin/sh
# Print the Python to set up the virtual environments with: the one that is named, else the newest
# that works. Nothing is downloaded before; a Python that cannot work is refused in one sentence.
#
#   sh find_python.sh [python]
CHECK='
import platform, struct, sys
v = tuple(sys.version_info[:3])
name = platform.python_implementation()
system, machine = platform.system(), platform.machine()
no = None
if not (3, 11) <= v[:2] <= (3, 14):
    no = "is Python %d.%d.%d" % v
elif v == (3, 14, 1):
    no = "is Python 3.14.1, which torchvision refuses"
elif name != "CPython":
    no = "is %s, for which there is no torch" % name
elif struct.calcsize("P") != 8:
    no = "has 32 bits, for which there is no torch"
elif not getattr(sys, "_is_gil_enabled", lambda: True)():
    no = "is free-threaded, for which some packages have no wheel"
elif (system, machine) not in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")):
    no = "runs on %s %s, for which there is no torch" % (system, machine)
elif system == "Linux" and platform.libc_ver()[0] != "glibc":
    no = "has no glibc, without which there is no torch"
else:
    for module in ("ensurepip", "venv", "ssl", "sqlite3", "ctypes", "bz2", "lzma", "zlib"):
        try:
            __import__(module)
        except ImportError:
            no = "lacks its module %s (on Debian: apt install python%d.%d-venv)" % (
                module, v[0], v[1])
            break
sys.stdout.write(("no " + no if no else "yes") + "\n")
'
NEEDED='CPython 3.11, 3.12, 3.13 or 3.14 (not 3.14.1) is needed'

asked() {
  command -v "$1" >/dev/null 2>&1 || { echo 'no is not installed'; return; }
  said=$("$1" -c "$CHECK" 2>/dev/null </dev/null | tail -n 1)
  case $said in yes | no\ *) echo "$said" ;; *) echo 'no does not run' ;; esac
}

if [ -n "${1:-}" ]; then
  said=$(asked "$1")
  [ "$said" = yes ] && { echo "$1"; exit 0; }
  echo "$NEEDED, but $1 ${said#no }: name another, such as make PYTHON=python3.13 demo." >&2
  exit 1
fi
found=
for python in python3.14 python3.13 python3.12 python3.11 python3; do
  said=$(asked "$python")
  [ "$said" = yes ] && { echo "$python"; exit 0; }
  [ "$said" = 'no is not installed' ] || [ "$said" = 'no does not run' ] \
    || found="$found; $python ${said#no }"
done
echo "$NEEDED, and none was found${found}: install one, or name it: make PYTHON=/path/to/python demo." >&2
exit 1
