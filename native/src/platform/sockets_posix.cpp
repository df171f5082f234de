#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <tuple>

#include "platform/sockets.h"

namespace hearth {
namespace {

#ifdef MSG_NOSIGNAL
constexpr int kQuietly = MSG_NOSIGNAL | MSG_DONTWAIT;
#else
constexpr int kQuietly = MSG_DONTWAIT;  // SO_NOSIGPIPE is set for the socket
#endif

// Host and port of an address.
std::pair<std::string, uint16_t> named(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
    return {text, ntohs(v4.sin_port)};
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    inet_ntop(AF_INET, v6.sin6_addr.s6_addr + 12, text, sizeof text);
  } else {
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
  }
  return {text, ntohs(v6.sin6_port)};
}

#ifdef TCP_CONGESTION
bool is_loopback(int fd) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  if (peer.ss_family == AF_INET) {
    const auto& address = reinterpret_cast<const sockaddr_in&>(peer).sin_addr;
    return ntohl(address.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (peer.ss_family != AF_INET6) return false;
  const auto& address = reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&address) ||
         (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == IN_LOOPBACKNET);
}
#endif

// The count of a call that moved bytes, or why it moved none.
long moved(ssize_t count) {
  if (count >= 0) return static_cast<long>(count);
  return errno == EAGAIN || errno == EWOULDBLOCK ? kWouldBlock : kSocketFailed;
}

}  // namespace

void start_sockets() {}

void close_socket(int fd) { ::close(fd); }
void shut_down_socket(int fd) { shutdown(fd, SHUT_RDWR); }
void shut_down_socket_for_sending(int fd) { shutdown(fd, SHUT_WR); }

bool prepare_socket(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return false;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
#ifdef SO_NOSIGPIPE
  const int quiet = 1;
  setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &quiet, sizeof quiet);
#endif
  return true;
}

bool set_no_delay(int fd) {
  const int on = 1;
  return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0 || errno == EOPNOTSUPP ||
         errno == ENOPROTOOPT;
}

void set_loopback_congestion([[maybe_unused]] int fd) {
#ifdef TCP_CONGESTION
  // Every Linux has reno; where it cannot be set, nothing is lost.
  constexpr char kPlain[] = "reno";
  if (is_loopback(fd)) setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, kPlain, sizeof kPlain - 1);
#endif
}

long receive_now(int fd, uint8_t* data, size_t size) {
  while (true) {
    const ssize_t count = recv(fd, data, size, MSG_DONTWAIT);
    if (count >= 0 || errno != EINTR) return moved(count);
  }
}

long send_now(int fd, const uint8_t* data, size_t size) {
  while (true) {
    const ssize_t count = send(fd, data, size, kQuietly);
    if (count >= 0 || errno != EINTR) return moved(count);
  }
}

std::pair<Socket, Socket> socket_pair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) throw_socket_error("a pair of sockets");
  std::pair<Socket, Socket> pair{Socket(ends[0]), Socket(ends[1])};
  if (!prepare_socket(ends[0]) || !prepare_socket(ends[1])) throw_socket_error("O_NONBLOCK");
  return pair;
}

Accepted accept_connection(int listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  Accepted found;
  const int fd = accept(listener, reinterpret_cast<sockaddr*>(&address), &size);
  if (fd < 0) {
    found.exhausted = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    return found;
  }
  found.socket.reset(fd);
  std::tie(found.host, found.port) = named(address);
  return found;
}

Socket connect_loopback(uint16_t port, uint16_t& own_port) {
  Socket made(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  sockaddr_in own{};
  socklen_t size = sizeof own;
  const timeval patience{1, 0};
  if (!made.open() ||
      setsockopt(made.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0 ||
      connect(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      getsockname(made.get(), reinterpret_cast<sockaddr*>(&own), &size) != 0 ||
      !prepare_socket(made.get()))
    return Socket();
  own_port = ntohs(own.sin_port);
  return made;
}

std::string socket_error() { return std::strerror(errno); }

void throw_socket_error(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

int poll_sockets(std::span<PollEntry> entries, int milliseconds) {
  return poll(entries.data(), static_cast<nfds_t>(entries.size()), milliseconds);
}

}  // namespace hearth
