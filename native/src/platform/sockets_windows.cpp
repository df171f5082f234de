// Winsock. Built by mingw-w64; Python's socket module hands its handles over as ints too.
#include <winsock2.h>
// (After winsock2.h, which windows.h would include in its older form.)
#include <ws2tcpip.h>

#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

#include "platform/sockets.h"

namespace hearth {
namespace {

static_assert(kReadable == POLLIN && kWritable == POLLOUT &&
              kBroken == (POLLERR | POLLHUP | POLLNVAL));

constexpr int kConnectSeconds = 1;

// Winsock must be started once in a process; what ends it is the process's end.
struct Winsock {
  Winsock() {
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
  }
};
SOCKET handle(int fd) { return static_cast<SOCKET>(fd); }
int number(SOCKET socket) { return socket == INVALID_SOCKET ? -1 : static_cast<int>(socket); }

long moved(int count) {
  if (count != SOCKET_ERROR) return count;
  return WSAGetLastError() == WSAEWOULDBLOCK ? kWouldBlock : kSocketFailed;
}

int bounded(size_t size) { return static_cast<int>(size < (1u << 30) ? size : 1u << 30); }

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

uint16_t port_of(int fd) {
  sockaddr_in own{};
  int size = sizeof own;
  if (getsockname(handle(fd), reinterpret_cast<sockaddr*>(&own), &size) != 0) return 0;
  return ntohs(own.sin_port);
}

}  // namespace

void start_sockets() { static const Winsock winsock; }

void close_socket(int fd) { closesocket(handle(fd)); }
void shut_down_socket(int fd) { shutdown(handle(fd), SD_BOTH); }
void shut_down_socket_for_sending(int fd) { shutdown(handle(fd), SD_SEND); }

bool prepare_socket(int fd) {
  start_sockets();
  u_long on = 1;
  if (ioctlsocket(handle(fd), static_cast<long>(FIONBIO), &on) != 0) return false;
  SetHandleInformation(reinterpret_cast<HANDLE>(handle(fd)), HANDLE_FLAG_INHERIT, 0);
  return true;
}

bool set_no_delay(int fd) {
  const char on = 1;
  return setsockopt(handle(fd), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
}

void set_loopback_congestion(int) {}

long receive_now(int fd, uint8_t* data, size_t size) {
  return moved(recv(handle(fd), reinterpret_cast<char*>(data), bounded(size), 0));
}

long send_now(int fd, const uint8_t* data, size_t size) {
  return moved(send(handle(fd), reinterpret_cast<const char*>(data), bounded(size), 0));
}

// Over the loopback: Windows has no socketpair.
std::pair<Socket, Socket> socket_pair() {
  start_sockets();
  const Socket listener(number(socket(AF_INET, SOCK_STREAM, 0)));
  const sockaddr_in any = loopback(0);
  uint16_t own_port = 0;
  if (!listener.open() ||
      bind(handle(listener.get()), reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0 ||
      listen(handle(listener.get()), 8) != 0)
    throw_socket_error("a pair of sockets");
  std::pair<Socket, Socket> pair;
  pair.first = connect_loopback(port_of(listener.get()), own_port);
  if (!pair.first.open()) throw_socket_error("a pair of sockets");
  while (true) {  // another process may have connected before
    Accepted found = accept_connection(listener.get());
    if (!found.socket.open()) throw_socket_error("a pair of sockets");
    if (found.port != own_port) continue;
    pair.second = std::move(found.socket);
    break;
  }
  if (!prepare_socket(pair.second.get())) throw_socket_error("a pair of sockets");
  set_no_delay(pair.first.get());
  set_no_delay(pair.second.get());
  return pair;
}

Accepted accept_connection(int listener) {
  sockaddr_storage address{};
  int size = sizeof address;
  Accepted found;
  const SOCKET made = accept(handle(listener), reinterpret_cast<sockaddr*>(&address), &size);
  if (made == INVALID_SOCKET) {
    found.exhausted = WSAGetLastError() == WSAEMFILE || WSAGetLastError() == WSAENOBUFS;
    return found;
  }
  found.socket.reset(number(made));
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
    found.port = ntohs(v4.sin_port);
  } else {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
      inet_ntop(AF_INET, v6.sin6_addr.s6_addr + 12, text, sizeof text);
    } else {
      inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    }
    found.port = ntohs(v6.sin6_port);
  }
  found.host = text;
  return found;
}

// Non-blocking from the start, for Windows has no time limit on connecting.
Socket connect_loopback(uint16_t port, uint16_t& own_port) {
  start_sockets();
  Socket made(number(socket(AF_INET, SOCK_STREAM, 0)));
  const sockaddr_in address = loopback(port);
  if (!made.open() || !prepare_socket(made.get())) return Socket();
  if (connect(handle(made.get()), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
      0) {
    if (WSAGetLastError() != WSAEWOULDBLOCK) return Socket();
    fd_set writable, failed;
    FD_ZERO(&writable);
    FD_ZERO(&failed);
    FD_SET(handle(made.get()), &writable);
    FD_SET(handle(made.get()), &failed);
    timeval patience{kConnectSeconds, 0};
    if (select(0, nullptr, &writable, &failed, &patience) <= 0 ||
        FD_ISSET(handle(made.get()), &failed))
      return Socket();
  }
  own_port = port_of(made.get());
  if (own_port == 0) return Socket();
  return made;
}

std::string socket_error() { return std::system_category().message(WSAGetLastError()); }

void throw_socket_error(const std::string& what) {
  throw std::system_error(WSAGetLastError(), std::system_category(), what);
}

int poll_sockets(std::span<PollEntry> entries, int milliseconds) {
  start_sockets();
  std::vector<WSAPOLLFD> asked;
  asked.reserve(entries.size());
  for (PollEntry& each : entries) {
    each.revents = 0;
    if (each.fd >= 0) asked.push_back({handle(each.fd), each.events, 0});
  }
  if (asked.empty()) {  // WSAPoll refuses to wait for none
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds < 0 ? 1000 : milliseconds));
    return 0;
  }
  const int count = WSAPoll(asked.data(), static_cast<ULONG>(asked.size()), milliseconds);
  if (count <= 0) return count;
  size_t at = 0;
  for (PollEntry& each : entries) {
    if (each.fd >= 0) each.revents = asked[at++].revents;
  }
  return count;
}

}  // namespace hearth
