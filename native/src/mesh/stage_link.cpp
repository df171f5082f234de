#include "hearth/stage_link.h"

#include <chrono>
#include <stdexcept>
#include <string>

#include "mesh/mesh_exchange.h"
#include "mesh/settle.h"
#include "platform/sockets.h"

namespace hearth {
namespace {

// The longest time until an abort is seen.
constexpr int kPollMilliseconds = 100;
// Frames of this size fit the system's buffers: sending them takes less time than another thread
// needs to wake up.
constexpr size_t kAtOnce = 64 << 10;

}  // namespace

StageLink::StageLink(StageLinkConfig config)
    : config_(std::move(config)), sockets_({config_.socket}) {
  if (config_.socket < 0) throw std::invalid_argument("mesh: a stage's link needs a socket");
  if (!(config_.deadline_seconds > 0.0))
    throw std::invalid_argument("mesh: the deadline must be above 0 seconds");
  if (config_.keys.send == config_.keys.receive)  // a frame could be sent back
    throw std::invalid_argument("mesh: rank " + std::to_string(config_.peer) +
                                " has one key for both directions");
  settle_mesh_socket(config_.socket);
  link_ = std::make_unique<MeshLink>(config_.cipher, config_.keys);
}

StageLink::~StageLink() {
  close();
  if (sender_.joinable()) sender_.join();
}

void StageLink::send(uint32_t step, std::span<const uint8_t> payload) {
  if (payload.empty()) throw std::invalid_argument("mesh: activations of no bytes");
  {
    const std::lock_guard lock(mutex_);
    if (error_) std::rethrow_exception(error_);
    // Behind frames that are still being sent there is no way past.
    if (payload.size() > kAtOnce || !queue_.empty()) {
      queue_.emplace_back(step, std::vector<uint8_t>(payload.begin(), payload.end()));
      if (!sender_.joinable()) sender_ = std::thread([this] { send_queued(); });
      changed_.notify_all();
      return;
    }
  }
  send_now(step, payload);
}

void StageLink::send_now(uint32_t step, std::span<const uint8_t> payload) {
  sockets_.use(config_.rank, [&] {
    uint8_t nothing = 0;
    Transfer transfer(config_.peer, sockets_.all[0], *link_, step, 0, payload.data(),
                      payload.size(), &nothing, 0, 1, TransferWay::out);
    move(transfer);
  });
}

void StageLink::receive(uint32_t step, std::span<uint8_t> payload) {
  if (payload.empty()) throw std::invalid_argument("mesh: activations of no bytes");
  sockets_.use(config_.rank, [&] {
    Transfer transfer(config_.peer, sockets_.all[0], *link_, step, 0, nullptr, 0, payload.data(),
                      payload.size(), payload.size(), TransferWay::in);
    move(transfer);
  });
}

void StageLink::move(Transfer& transfer) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  while (!transfer.done()) {
    const bool sent = transfer.send(), received = transfer.receive();
    if (sent || received) continue;
    if (aborted_.load()) throw LaneError(config_.rank, "was told to give the step up");
    const double left =
        config_.deadline_seconds - std::chrono::duration<double>(Clock::now() - start).count();
    if (left <= 0.0)
      throw LaneError(config_.peer, "did not " + std::string(transfer.sending() ? "take" : "send") +
                                        " activations within " +
                                        std::to_string(config_.deadline_seconds) + " s");
    const int events = transfer.sending() ? kWritable : kReadable;
    PollEntry one{transfer.socket(), static_cast<short>(events), 0};
    poll_sockets({&one, 1}, kPollMilliseconds);
  }
}

void StageLink::send_queued() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return aborted_.load() || !queue_.empty(); });
    if (aborted_.load()) return;
    const Frame& frame = queue_.front();  // a deque's elements stay in their places
    lock.unlock();
    std::exception_ptr error;
    try {
      send_now(frame.first, frame.second);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      error_ = error;
      return;
    }
    queue_.pop_front();
  }
}

void StageLink::abort() {
  const std::lock_guard lock(mutex_);
  aborted_.store(true);
  changed_.notify_all();
}

void StageLink::close() {
  abort();
  sockets_.close();
}

}  // namespace hearth
