"""Listens for the announcements of workers by mDNS, with bounded memory.

Anyone on a LAN can announce any number of names, for years. zeroconf's ServiceBrowser keeps an
entry for each of them until it expires, and asks for each again. This listener replaces it:

- It keeps nothing from one packet to the next. A packet has at most 8,966 bytes.
- zeroconf's cache keeps at most 10,000 records, and drops those that expire first. Long texts and
  records of other kinds are taken out: the rest have at most 1,300 bytes of data, and names of at
  most 255 bytes. With Python's objects that is 30 MB at most.
- A worker whose records were dropped, or that found no place, is asked again within a minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
from zeroconf._dns import DNSAddress, DNSPointer, DNSQuestion, DNSRecord, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from hearth.worker.announce import SERVICE_TYPE

log = logging.getLogger(__name__)

# Between two questions: doubled from the first to the second, as RFC 6762 (5.2) wants it.
_FIRST_SECONDS = 1.0
_MOST_SECONDS = 60.0
# Names of one packet that are looked at. A worker's packet has one.
_MAX_NAMES = 64
# Records of one host that are looked at for a name.
_MAX_RECORDS = 32
# Bytes of a service's text that stay in the cache; RFC 6763 (6.2) advises less.
_MAX_TEXT = 1300
# RFC 1035: a question, of type PTR, in class IN.
_QUESTION, _PTR, _IN = 0, 12, 1


class Browser(RecordUpdateListener):
    """Reports names as they are announced and leave, from construction to `stop`.

    Both functions are called in zeroconf's thread and must return at once.
    """

    def __init__(
        self,
        zc: Zeroconf,
        seen: Callable[[ServiceInfo], object],
        left: Callable[[str], object],
    ) -> None:
        """seen: called with all that the packet has about a name; left: with a name."""
        super().__init__()
        self._zc = zc
        self._seen = seen
        self._left = left
        # Of the packet that is being read.
        self._infos: list[ServiceInfo] = []
        self._leaving: list[str] = []
        self._unwanted: list[DNSRecord] = []
        self._stopped = threading.Event()
        zc.add_listener(self, None)
        threading.Thread(target=self._ask, name="hearth-mdns-ask", daemon=True).start()

    def stop(self) -> None:
        """Returns at once. The caller closes zeroconf."""
        self._stopped.set()

    def _ask(self) -> None:
        """The thread that asks for all workers, again and again."""
        seconds = _FIRST_SECONDS
        while not self._stopped.is_set():
            question = DNSOutgoing(_QUESTION)
            question.add_question(DNSQuestion(SERVICE_TYPE, _PTR, _IN))
            self._zc.send(question)
            self._stopped.wait(seconds)
            seconds = min(2 * seconds, _MOST_SECONDS)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """zeroconf's: records of a packet, or those that have expired."""
        names: dict[str, str] = {}
        by_name: dict[str, list[RecordUpdate]] = {}
        for update in records:
            record = update.new
            if not _may_stay(record):
                self._unwanted.append(record)
            of_name = by_name.setdefault(record.key, [])
            if len(of_name) < _MAX_RECORDS:
                of_name.append(update)
            name = _name_of(record)
            if not name or len(names) >= _MAX_NAMES:
                continue
            if not record.is_expired(now):
                names[name.lower()] = name
            elif isinstance(record, DNSPointer) and len(self._leaving) < _MAX_NAMES:
                self._leaving.append(name)
        for key, name in names.items():
            own = by_name.get(key, [])
            servers = [each.new.server_key for each in own if isinstance(each.new, DNSService)]
            try:
                info = ServiceInfo(SERVICE_TYPE, name)
            except Exception as error:  # anyone can send anything
                log.debug("mDNS: %s: %s", name, error)
                continue
            # The host's addresses count once the name's host is known.
            info.async_update_records(zc, now, own)
            for server in servers[:1]:
                info.async_update_records(zc, now, by_name.get(server, []))
            self._infos.append(info)

    def async_update_records_complete(self) -> None:
        """zeroconf's: its cache has them."""
        cache = self._zc.cache
        unwanted, self._unwanted = self._unwanted, []
        for record in unwanted:
            if record in cache.cache.get(record.key, ()):
                cache.async_remove_records([record])
        leaving, self._leaving = self._leaving, []
        infos, self._infos = self._infos, []
        for name in leaving:
            self._left(name)
        for info in infos:
            self._seen(info)


def _may_stay(record: DNSRecord) -> bool:
    """True for a record of bounded size, of a kind that finding workers needs."""
    if isinstance(record, DNSText):
        return len(record.text) <= _MAX_TEXT
    return isinstance(record, (DNSAddress, DNSPointer, DNSService))


def _name_of(record: DNSRecord) -> str:
    """The worker that a record is about; "" for none."""
    if isinstance(record, DNSPointer) and record.key == SERVICE_TYPE:
        name = record.alias
    elif isinstance(record, DNSService):
        name = record.name
    else:
        return ""
    return name if name.lower().endswith(f".{SERVICE_TYPE}") else ""
