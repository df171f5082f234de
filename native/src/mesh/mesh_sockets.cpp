#include "hearth/mesh_sockets.h"

#include <stdexcept>

#include "mesh/settle.h"
#include "platform/sockets.h"

namespace hearth {

void settle_mesh_socket(int socket) {
  if (!prepare_socket(socket)) throw_socket_error("mesh: O_NONBLOCK");
  if (!set_no_delay(socket)) throw_socket_error("mesh: TCP_NODELAY");
  // Loopback has no congestion: a control that paces packets (bbr) only makes large sums take twice
  // as long.
  set_loopback_congestion(socket);
}

void MeshSockets::begin_use() {
  const std::lock_guard lock(mutex_);
  if (closed_) throw std::logic_error("mesh: the lane is closed");
  ++users_;
}

void MeshSockets::end_use() {
  const std::lock_guard lock(mutex_);
  if (--users_ == 0 && closed_) free();
}

void MeshSockets::close() {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = true;
  for (int socket : all) {
    if (socket >= 0) shut_down_socket(socket);
  }
  if (users_ == 0) free();
}

bool MeshSockets::closed() {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void MeshSockets::free() {
  for (int& socket : all) {
    if (socket >= 0) close_socket(socket);
    socket = -1;
  }
}

}  // namespace hearth
