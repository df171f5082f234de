"""Facilities that not every system has are named in few modules, which guard them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
# The modules that may, and programs that run by themselves: the SDK, and the process of templates.
GUARDED = frozenset(
    {
        "services/common/system.py",
        "services/common/system_files.py",
        "services/common/cgroups.py",
        "client/connection.py",
        "converter/chat_sandbox.py",
    }
)
MODULES = frozenset(
    {
        *("_posixsubprocess", "ctypes", "curses", "fcntl", "grp", "msvcrt", "pty", "pwd"),
        *("readline", "resource", "select", "syslog", "termios", "tty", "winreg"),
    }
)
# Attributes of os, signal, socket and select, and arguments of functions.
OS = frozenset(
    {
        *("chown", "chroot", "confstr", "fchmod", "fchown", "fork", "forkpty", "fstatvfs"),
        *(
            "getegid",
            "geteuid",
            "getgid",
            "getgroups",
            "getloadavg",
            "getpgid",
        ),
        *("getuid", "killpg", "lchown", "memfd_create", "mkfifo", "nice", "openpty", "pipe2"),
        *("posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite"),
        *("pwritev", "sched_getaffinity", "sched_setaffinity", "sendfile", "setsid", "statvfs"),
        *("sysconf", "uname", "wait3", "wait4", "utime", "scandir", "O_BINARY", "O_CLOEXEC"),
        *("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "O_DIRECT"),
    }
)
SIGNAL = frozenset(
    {
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT", "SIGUSR1"),
        *("SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill", "pthread_sigmask"),
        *("setitimer", "set_wakeup_fd", "sigwait"),
    }
)
SOCKET = frozenset(
    {
        *("AF_NETLINK", "AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL", "SO_BINDTODEVICE"),
        *("SO_PEERCRED", "SO_RCVLOWAT", "SO_REUSEADDR", "SO_REUSEPORT", "TCP_CORK", "TCP_INFO"),
        *("TCP_KEEPCNT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_QUICKACK", "TCP_USER_TIMEOUT"),
        *("recv_fds", "send_fds"),
    }
)
ATTRIBUTES = {"os": OS | {"name"}, "signal": SIGNAL, "socket": SOCKET, "sys": {"platform"}}
ARGUMENTS = frozenset(
    {"dir_fd", "dst_dir_fd", "pass_fds", "preexec_fn", "src_dir_fd", "start_new_session"}
)
FILES = ("/proc/", "/sys/", "/dev/")


def named(source: str) -> Iterator[str]:
    """The names of facilities in a module, with their lines."""
    for node in ast.walk(ast.parse(source)):
        found = ""
        if isinstance(node, ast.Import):
            found = next((a.name for a in node.names if a.name in MODULES), "")
        elif isinstance(node, ast.ImportFrom):
            names = ATTRIBUTES.get(node.module or "", frozenset())
            found = next((a.name for a in node.names if a.name in names), "")
            found = found or (node.module if node.module in MODULES else "") or ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ATTRIBUTES.get(node.value.id, frozenset()):
                found = f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            found = node.arg or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named_by_text = node.value in OS | SOCKET and node.value.lower() != node.value
            if node.value.startswith(FILES) or named_by_text:
                found = repr(node.value)
        if found:
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def modules() -> list[Path]:
    folders = ("services", "cli", "client", "converter")
    return sorted(path for folder in folders for path in (TOP / folder).rglob("*.py"))


def test_only_guarding_modules_name_what_depends_on_the_system() -> None:
    wrong = [
        f"{path.relative_to(TOP)}:{what}"
        for path in modules()
        if str(path.relative_to(TOP)) not in GUARDED
        for what in named(path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "from os import geteuid",
        "def late():\n    import resource",
        "os.sched_getaffinity(0)",
        "connection.setsockopt(1, socket.SO_REUSEPORT, 1)",
        "getattr(socket, 'TCP_INFO', None)",
        "subprocess.Popen(words, pass_fds=[3])",
        "Path('/proc/self/status').read_text()",
        "os.kill(1, signal.SIGKILL)",
        "if sys.platform == 'linux': pass",
    ],
)
def test_a_name_is_found(line: str) -> None:
    assert len(list(named(line))) == 1
    assert list(named("import os\nos.open(path, os.O_RDONLY)\nsignal.SIGTERM")) == []


# The core: headers of a system, its name, and what only some compilers have. ([[gnu::...]] is the
# language's own notation, which compilers that do not know it leave out.)
SYSTEM_HEADER = re.compile(
    r"#\s*include\s*<(sys/|linux/|mach/|arpa/|net/|netinet/|windows|winsock|ws2|io\.h|direct\.h|"
    r"unistd|fcntl|poll|sched|pthread|dlfcn|signal|semaphore|malloc|cpuid|dirent|byteswap|endian)"
)
COMPILERS = re.compile(
    r"__builtin_|__attribute__|__declspec|__extension__|__int128|__typeof|__restrict|__GNUC__|"
    r"__clang__|_MSC_VER|_GNU_SOURCE|#\s*pragma\s+(?!once)|_Pragma|\basm\b|__asm|\balloca\b"
)
SYSTEM = re.compile(
    r"_WIN32|_WIN64|__linux|__APPLE__|__unix|__FreeBSD__|__MINGW|__GLIBC__|__musl__"
)
CORE = TOP / "native"


def core_names(source: str) -> list[str]:
    """Lines of the core that name a system or a compiler."""
    code = re.sub(r"//.*", "", source)
    patterns = (SYSTEM_HEADER, COMPILERS, SYSTEM)
    return [line for line in code.splitlines() if any(each.search(line) for each in patterns)]


def test_only_the_platform_folder_of_the_core_names_systems_and_compilers() -> None:
    files = [path for top in ("src", "include", "bindings") for path in (CORE / top).rglob("*.*")]
    assert len(files) > 100
    wrong = [
        f"{path.relative_to(CORE)}: {line.strip()}"
        for path in files
        if path.suffix in (".cpp", ".h") and CORE / "src" / "platform" not in path.parents
        for line in core_names(path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "#include <sys/mman.h>",
        "#include <unistd.h>",
        "#ifdef _WIN32",
        "  __builtin_prefetch(at);",
        "auto f = []() __attribute__((always_inline)) {};",
        "using Wide = unsigned __int128;",
        "#pragma GCC unroll 4",
    ],
)
def test_a_name_in_the_core_is_found(line: str) -> None:
    assert core_names(line) == [line]
    assert (
        core_names("#pragma once\n[[gnu::always_inline]] inline int f();  // as __builtin_x") == []
    )
