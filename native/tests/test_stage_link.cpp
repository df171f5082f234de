// Links between two stages, between threads of one process over socket pairs: frames of all sizes
// in order, and peers that leave, keep silent or send something else.
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "hearth/stage_link.h"
#include "mesh_frames.h"
#include "platform/sockets.h"
#include "sockets.h"

using namespace hearth;

namespace {

constexpr size_t kSender = 2, kReceiver = 5;

std::unique_ptr<StageLink> link(size_t rank, size_t peer, int socket, MeshCipher cipher,
                                double deadline = 60.0) {
  return std::make_unique<StageLink>(
      StageLinkConfig{.rank = rank,
                      .peer = peer,
                      .socket = socket,
                      .deadline_seconds = deadline,
                      .cipher = cipher,
                      .keys = {test::key(rank, peer), test::key(peer, rank)}});
}

std::vector<uint8_t> payload_of(uint32_t step, size_t size) {
  std::mt19937 random(step);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// The LaneError of a call: its rank, and its text.
std::pair<size_t, std::string> failure(const std::function<void()>& call) {
  try {
    call();
  } catch (const LaneError& error) {
    return {error.rank(), error.what()};
  }
  return {0, "no error"};
}

// Small frames, which are sent at once, among large ones, which a thread sends: all in order.
void test_frames(MeshCipher cipher) {
  const test::Case each("cipher ", static_cast<int>(cipher));
  const auto [a, b] = test::pair();
  const auto sender = link(kSender, kReceiver, a, cipher);
  const auto receiver = link(kReceiver, kSender, b, cipher);
  const std::vector<size_t> sizes = {1, 4096, 65536, 65537, 7, 1 << 20, 3 << 20, 100, 200000, 1};
  std::thread sending([&] {
    for (uint32_t step = 1; step <= sizes.size(); ++step)
      sender->send(step, payload_of(step, sizes[step - 1]));
  });
  for (uint32_t step = 1; step <= sizes.size(); ++step) {
    std::vector<uint8_t> found(sizes[step - 1]);
    receiver->receive(step, found);
    CHECK(found == payload_of(step, found.size()));
  }
  sending.join();
}

void test_a_peer_that_leaves() {
  const auto [a, b] = test::pair();
  const auto sender = link(kSender, kReceiver, a, MeshCipher::plain);
  const auto receiver = link(kReceiver, kSender, b, MeshCipher::plain);
  sender->close();
  std::vector<uint8_t> room(8);
  const auto [rank, text] = failure([&] { receiver->receive(1, room); });
  CHECK(rank == kSender);
  CHECK(text.find("is lost") != std::string::npos);
  // The other way: what cannot be sent in the background is the error of a later frame.
  receiver->close();
}

void test_a_sender_of_a_peer_that_is_gone() {
  const auto [a, b] = test::pair();
  const auto sender = link(kSender, kReceiver, a, MeshCipher::plain);
  close_socket(b);
  const std::vector<uint8_t> large(1 << 20);
  size_t rank = 0;
  for (uint32_t step = 1; rank == 0; ++step)
    rank = failure([&] { sender->send(step, large); }).first;
  CHECK(rank == kReceiver);
}

void test_silence() {
  const auto [a, b] = test::pair();
  const auto receiver = link(kReceiver, kSender, b, MeshCipher::plain, 0.05);
  std::vector<uint8_t> room(8);
  const auto [rank, text] = failure([&] { receiver->receive(1, room); });
  CHECK(rank == kSender);
  CHECK(text.find("did not send activations within") != std::string::npos);
  close_socket(a);
}

void test_another_step_or_size(uint32_t step, size_t size) {
  const auto [a, b] = test::pair();
  const auto sender = link(kSender, kReceiver, a, MeshCipher::plain);
  const auto receiver = link(kReceiver, kSender, b, MeshCipher::plain);
  sender->send(step, std::vector<uint8_t>(size));
  std::vector<uint8_t> room(8);
  const auto [rank, text] = failure([&] { receiver->receive(1, room); });
  CHECK(rank == kSender);
  CHECK(text.find("is out of step") != std::string::npos);
}

void test_damage(MeshCipher cipher) {
  const auto [a, b] = test::pair();
  const auto receiver = link(kReceiver, kSender, b, cipher);
  auto frame = test::FrameWriter(cipher, kSender, kReceiver).frame(1, 0, payload_of(1, 300));
  frame[frame.size() / 2] ^= 4;
  test::send_all(a, frame.data(), frame.size());
  std::vector<uint8_t> room(300);
  const auto [rank, text] = failure([&] { receiver->receive(1, room); });
  CHECK(rank == kSender);
  CHECK(text.find("arrived changed") != std::string::npos);
  close_socket(a);
}

// A wait ends when the link is aborted or closed by another thread.
void test_abort(bool close) {
  const auto [a, b] = test::pair();
  const auto receiver = link(kReceiver, kSender, b, MeshCipher::plain);
  std::thread ending([&] { close ? receiver->close() : receiver->abort(); });
  std::vector<uint8_t> room(8);
  try {
    receiver->receive(1, room);
    CHECK(false);
  } catch (const LaneError& error) {
    CHECK(error.rank() == kReceiver);
  } catch (const std::logic_error&) {
    CHECK(close);  // closed before the wait began
  }
  ending.join();
  close_socket(a);
}

}  // namespace

int main() {
  for (MeshCipher cipher : test::ciphers()) {
    test_frames(cipher);
    test_damage(cipher);
  }
  test_a_peer_that_leaves();
  test_a_sender_of_a_peer_that_is_gone();
  test_silence();
  test_another_step_or_size(2, 8);
  test_another_step_or_size(1, 9);
  test_abort(false);
  test_abort(true);
  return test::finish();
}
