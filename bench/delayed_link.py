"""Two network namespaces, joined by a link whose rate and delay this process makes.

The kernel may lack netem, which delays packets. So each end is a TUN device, and two threads for
each direction carry packets from one to the other. A packet is due when those before it are through
at the link's rate, and the delay has passed. Packets are as long as 64 KiB, so that the carrying
takes little of the processor. Needs root, iproute2 and /dev/net/tun.
"""

import contextlib
import fcntl
import os
import queue
import struct
import subprocess
import threading
import time

NEAR, FAR = "10.213.8.1", "10.213.8.2"
_MTU = 65000
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001


class DelayedLink:
    """A link of so many bits per second and seconds from end to end; `close` removes it."""

    def __init__(self, bits_per_second: float, delay_seconds: float) -> None:
        self._names = [f"hearth-{end}-{os.getpid()}" for end in ("near", "far")]
        self._devices: list[int] = []
        try:
            for name, address in zip(self._names, (NEAR, FAR), strict=True):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
                device = f"t{os.getpid()}{len(self._devices)}"
                self._devices.append(os.open("/dev/net/tun", os.O_RDWR))
                request = struct.pack("16sH22x", device.encode(), _TUN_WITHOUT_HEADER)
                fcntl.ioctl(self._devices[-1], _TUNSETIFF, request)
                _ip("link", "set", device, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
                _ip("-n", name, "link", "set", device, "mtu", str(_MTU), "up")
        except BaseException:
            self.close()
            raise
        for source, target in (self._devices, self._devices[::-1]):
            packets: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            times = bits_per_second / 8, delay_seconds
            for work, *given in ((_read, source, packets, *times), (_write, target, packets)):
                threading.Thread(target=work, args=given, daemon=True).start()

    def inside(self, end: int) -> list[str]:
        """Prefix that runs a command at one end: 0 near, 1 far."""
        return ["ip", "netns", "exec", self._names[end]]

    def close(self) -> None:
        """Remove the namespaces, and with them the devices."""
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _read(
    device: int,
    packets: queue.SimpleQueue[tuple[float, bytes]],
    bytes_per_second: float,
    delay: float,
) -> None:
    """Reads packets until the device is gone, and notes when each is due."""
    free = 0.0
    with contextlib.suppress(OSError):
        while True:
            packet = os.read(device, _MTU + 100)
            free = max(free, time.monotonic()) + len(packet) / bytes_per_second
            packets.put((free + delay, packet))


def _write(device: int, packets: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    """Writes packets when they are due; until the process ends."""
    while True:
        due, packet = packets.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            os.write(device, packet)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
