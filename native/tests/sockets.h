// Connections of the tests and fuzz targets, with calls that wait.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "platform/sockets.h"

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#else
#include <netinet/in.h>
#include <sys/socket.h>
#endif

namespace hearth::test {

// Both ends belong to the caller.
inline std::pair<int, int> pair() {
  auto ends = socket_pair();
  const int first = ends.first.release();
  return {first, ends.second.release()};
}

// True if something can be read, or the connection has ended, within the time; -1: any.
inline bool readable(int fd, int milliseconds) {
  PollEntry one{fd, kReadable, 0};
  return poll_sockets({&one, 1}, milliseconds) == 1;
}

// The count; 0 or less at the end, or if it failed.
inline long receive(int fd, void* data, size_t size) {
  while (true) {
    const long count = receive_now(fd, static_cast<uint8_t*>(data), size);
    if (count != kWouldBlock) return count;
    readable(fd, -1);
  }
}

// The count, `size` unless the connection ended.
inline long send_all(int fd, const void* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const long count = send_now(fd, static_cast<const uint8_t*>(data) + done, size - done);
    if (count == kSocketFailed) break;
    if (count > 0) done += static_cast<size_t>(count);
    PollEntry one{fd, kWritable, 0};
    if (count == kWouldBlock) poll_sockets({&one, 1}, -1);
  }
  return static_cast<long>(done);
}

// A port of 127.0.0.1 that the system chose.
inline int listening(uint16_t& port) {
  start_sockets();
  const auto fd = static_cast<int>(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* at = reinterpret_cast<sockaddr*>(&address);
  if (fd < 0 || ::bind(fd, at, size) != 0 || ::listen(fd, 64) != 0 ||
      ::getsockname(fd, at, &size) != 0 || !prepare_socket(fd))
    throw std::runtime_error("no port of 127.0.0.1 to listen on: " + socket_error());
  port = ntohs(address.sin_port);
  return fd;
}

}  // namespace hearth::test
