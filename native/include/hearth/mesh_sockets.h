// Sockets of the mesh, which may be closed while another thread uses them.
#pragma once

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "hearth/lane_error.h"

namespace hearth {

// Closed by `close`, but not while they are in use, because the system may give a descriptor that
// is closed to another file at once.
class MeshSockets {
 public:
  explicit MeshSockets(std::vector<int> sockets) : all(std::move(sockets)) {}
  ~MeshSockets() { close(); }
  MeshSockets(const MeshSockets&) = delete;
  MeshSockets& operator=(const MeshSockets&) = delete;

  // Runs `work`, which uses the sockets. Throws what it throws, and std::logic_error once closed;
  // a LaneError of `own` where they were closed meanwhile.
  template <typename Work>
  void use(size_t own, const Work& work) {
    begin_use();
    struct Use {
      ~Use() { sockets.end_use(); }
      MeshSockets& sockets;
    } const use{*this};
    try {
      work();
    } catch (const LaneError&) {
      // The peers are not to blame for connections that were shut down here.
      if (!closed()) throw;
      throw LaneError(own, "closed its lane during a sync");
    }
  }
  void close();

  std::vector<int> all;  // -1 in one's own place, and everywhere once closed

 private:
  void begin_use();  // throws std::logic_error once closed
  void end_use();
  bool closed();
  void free();  // with mutex_ held
  std::mutex mutex_;
  size_t users_ = 0;
  bool closed_ = false;
};

}  // namespace hearth
