// A connection of the mesh between nodes of two stages: activations go one way, to the next stage.
//
// Frames are those of the mesh lane (mesh.h): one for each step, in order, encrypted or checked.
// Both ends know the step and the size that are due, so a header is compared, never trusted.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "hearth/mesh_cipher.h"
#include "hearth/mesh_sockets.h"

namespace hearth {

struct MeshLink;
class Transfer;

struct StageLinkConfig {
  size_t rank, peer;        // ranks in the mesh, which errors name
  int socket;               // owned by the link
  double deadline_seconds;  // for one frame
  MeshCipher cipher;
  MeshKeys keys;
};

class StageLink {
 public:
  // Throws std::invalid_argument, std::system_error when the socket fails, std::runtime_error
  // without the cipher. The socket is closed then too.
  explicit StageLink(StageLinkConfig config);
  ~StageLink();
  StageLink(const StageLink&) = delete;
  StageLink& operator=(const StageLink&) = delete;

  // Sends the frame of a step, of at least one byte. A large one goes on in a thread while the
  // caller computes. Throws LaneError, also for an earlier frame.
  void send(uint32_t step, std::span<const uint8_t> payload);
  // Waits for the frame of a step and fills `payload`. Throws LaneError.
  void receive(uint32_t step, std::span<uint8_t> payload);

  // Ends a wait that is under way, from any thread: it throws within a tenth of a second.
  void abort();
  // Ends the connection, from any thread.
  void close();

 private:
  using Frame = std::pair<uint32_t, std::vector<uint8_t>>;

  void send_now(uint32_t step, std::span<const uint8_t> payload);
  void move(Transfer& transfer);
  void send_queued();

  StageLinkConfig config_;
  MeshSockets sockets_;
  std::unique_ptr<MeshLink> link_;
  std::atomic<bool> aborted_{false};

  std::mutex mutex_;  // over what follows
  std::condition_variable changed_;
  std::deque<Frame> queue_;  // its first frame is being sent
  std::exception_ptr error_;
  std::thread sender_;
};

}  // namespace hearth
