// The mesh lane between threads of one process, over socket pairs: sums, equal bits on all ranks,
// and ranks that leave, keep silent, speak out of turn, or are told to stop. The sanitizers' view
// of what tests/unit/test_native_mesh.py does over TCP.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "hearth/mesh.h"

using namespace hearth;

namespace {

using Clock = std::chrono::steady_clock;

// A connection between every two ranks: [rank][peer], -1 at its own place.
std::vector<std::vector<int>> connect(size_t ranks) {
  std::vector<std::vector<int>> ends(ranks, std::vector<int>(ranks, -1));
  for (size_t a = 0; a < ranks; ++a) {
    for (size_t b = a + 1; b < ranks; ++b) {
      int pair[2];
      CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
      ends[a][b] = pair[0];
      ends[b][a] = pair[1];
    }
  }
  return ends;
}

std::unique_ptr<MeshLane> lane(const std::vector<std::vector<int>>& ends, size_t rank,
                               WireType wire, size_t direct_bytes = 0, double deadline = 60.0) {
  return std::make_unique<MeshLane>(MeshConfig{.rank = rank,
                                               .sockets = ends[rank],
                                               .wire = wire,
                                               .deadline_seconds = deadline,
                                               .direct_bytes = direct_bytes});
}

void on_all(size_t ranks, const std::function<void(size_t)>& work) {
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ranks; ++r) threads.emplace_back(work, r);
  for (auto& thread : threads) thread.join();
}

std::vector<float> part_of(size_t rank, size_t numbers) {
  std::mt19937 random(static_cast<uint32_t>(rank) + 1);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(numbers);
  for (float& each : x) each = normal(random);
  return x;
}

// How far a sum may be from the true one: each part is rounded for the wire once, and scattered the
// sum once more. Normal numbers stay under 6, their sums over n ranks under 6 sqrt(n) and more; a
// step of f16 there is 2^-8 at most, of q80 a 127th of the largest.
double tolerance(WireType wire, size_t ranks) {
  const auto n = static_cast<double>(ranks);
  if (wire == WireType::f32) return n * 1e-5;
  if (wire == WireType::f16) return (n + 1) * 0x1p-8;
  return (n * 6.0 + 12.0) / 127.0;
}

void test_sums() {
  for (WireType wire : {WireType::f32, WireType::f16, WireType::q80}) {
    for (size_t ranks = 2; ranks <= 5; ++ranks) {
      for (size_t direct_bytes : {size_t{0}, size_t{1} << 20}) {
        const test::Case each("wire ", static_cast<int>(wire), ", ", ranks, " ranks, direct up to ",
                              direct_bytes);
        const auto ends = connect(ranks);
        std::vector<std::vector<float>> results(ranks);
        uint64_t sent[8] = {}, received[8] = {};
        // One block (fewer than ranks), odd numbers of blocks, and more than a socket's buffer.
        const std::vector<size_t> sizes = {32, 96, 2080, 131072};
        on_all(ranks, [&](size_t rank) {
          const auto mine = lane(ends, rank, wire, direct_bytes);
          for (uint32_t step = 0; step < 2; ++step) {
            mine->begin(step);
            for (size_t numbers : sizes) {
              std::vector<float> x = part_of(rank, numbers);
              mine->all_reduce(x.data(), 1, numbers);
              if (step == 0) results[rank].insert(results[rank].end(), x.begin(), x.end());
            }
          }
          sent[rank] = mine->sent_bytes();
          received[rank] = mine->received_bytes();
        });
        uint64_t all_sent = 0, all_received = 0;
        for (size_t r = 0; r < ranks; ++r) {
          CHECK_SAME(results[r], results[0]);
          all_sent += sent[r];
          all_received += received[r];
        }
        CHECK_EQUAL(all_sent, all_received);
        size_t at = 0;
        for (size_t numbers : sizes) {
          std::vector<double> sum(numbers);
          for (size_t r = 0; r < ranks; ++r) {
            const std::vector<float> part = part_of(r, numbers);
            for (size_t i = 0; i < numbers; ++i) sum[i] += part[i];
          }
          for (size_t i = 0; i < numbers; i += 7)
            CHECK_NEAR(results[0][at + i], sum[i], tolerance(wire, ranks));
          at += numbers;
        }
      }
    }
  }
}

// f32 and f16 need no whole blocks.
void test_odd_sizes() {
  for (WireType wire : {WireType::f32, WireType::f16}) {
    const auto ends = connect(3);
    std::vector<float> results[3];
    on_all(3, [&](size_t rank) {
      const auto mine = lane(ends, rank, wire);
      mine->begin(0);
      results[rank] = part_of(rank, 37);
      mine->all_reduce(results[rank].data(), 1, 37);
    });
    CHECK_SAME(results[1], results[0]);
    CHECK_SAME(results[2], results[0]);
  }
  const auto ends = connect(2);
  const auto one = lane(ends, 0, WireType::q80), other = lane(ends, 1, WireType::q80);
  std::vector<float> x(37);
  CHECK_THROWS(one->all_reduce(x.data(), 1, 37), std::invalid_argument, "blocks of 32");
}

// Runs rank 0 of two against `peer`, which has the other end of the connection.
void against(double deadline, const std::string& part,
             const std::function<void(int, MeshLane&)>& peer) {
  const test::Case each(part);
  const auto ends = connect(2);
  const auto mine = lane(ends, 0, WireType::f32, 0, deadline);
  mine->begin(7);
  const auto start = Clock::now();
  std::thread other([&] { peer(ends[1][0], *mine); });
  std::vector<float> x(64, 1.0f);
  CHECK_THROWS(mine->all_reduce(x.data(), 1, 64), LaneError, part);
  CHECK(Clock::now() - start < std::chrono::seconds(10));
  other.join();
  close(ends[1][0]);
}

void test_bad_peers() {
  against(60, "rank 1 is lost", [](int end, MeshLane&) { shutdown(end, SHUT_RDWR); });
  against(60, "rank 1 is out of step", [](int end, MeshLane&) {
    const std::vector<uint8_t> noise(16 + 64 * 4, 0xa5);
    CHECK_EQUAL(send(end, noise.data(), noise.size(), 0), static_cast<ssize_t>(noise.size()));
  });
  against(60, "it sent 4294967295 bytes for sync 0 of step 7, due are 256", [](int end, MeshLane&) {
    const uint32_t header[4] = {0x48525448, 7, 0, 0xffffffffu};
    CHECK_EQUAL(send(end, header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
  });
  against(60, "due are 256 for sync 0 of step 7", [](int end, MeshLane&) {
    const uint32_t header[4] = {0x48525448, 6, 0, 256};  // of the step before
    CHECK_EQUAL(send(end, header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
  });
  against(0.2, "rank 1 did not answer within 0.2", [](int, MeshLane&) {});
  // A byte now and then is no answer either.
  against(0.2, "rank 1 did not answer within 0.2", [](int end, MeshLane&) {
    const uint32_t header[4] = {0x48525448, 7, 0, 256};
    const auto* at = reinterpret_cast<const uint8_t*>(header);
    for (size_t i = 0; i < 280; ++i) {
      const uint8_t byte = i < sizeof header ? at[i] : 0;
      if (i >= 200 || send(end, &byte, 1, MSG_NOSIGNAL) != 1) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  against(60, "told to give the step up", [](int, MeshLane& mine) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    mine.abort();
  });
}

void test_limits() {
  // A descriptor of its own each time: the lane closes it, whether it comes to be or not.
  const auto make = [](size_t rank, std::vector<int> sockets, double deadline = 1.0) {
    int pair[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    for (int& socket : sockets) {
      if (socket >= 0) socket = pair[0];
    }
    const bool given = std::count(sockets.begin(), sockets.end(), pair[0]) > 0;
    const std::unique_ptr<int, void (*)(int*)> check(pair, [](int* both) {
      uint8_t byte;
      // The other end is told that this one was closed.
      CHECK_EQUAL(recv(both[1], &byte, 1, MSG_DONTWAIT), 0);
      close(both[1]);
    });
    if (!given) close(pair[0]);
    MeshLane(MeshConfig{.rank = rank,
                        .sockets = std::move(sockets),
                        .wire = WireType::f32,
                        .deadline_seconds = deadline,
                        .direct_bytes = 0});
  };
  CHECK_THROWS(make(0, {-1}), std::invalid_argument, "rank 0 of 1 ranks");
  CHECK_THROWS(make(2, {-1, -1}), std::invalid_argument, "rank 2 of 2 ranks");
  CHECK_THROWS(make(0, {-1, -1}), std::invalid_argument, "socket");
  CHECK_THROWS(make(0, {-1, 1}, 0.0), std::invalid_argument, "deadline");
  CHECK_THROWS(make(0, {-1, 1}, std::nan("")), std::invalid_argument, "deadline");
}

}  // namespace

int main() {
  test_sums();
  test_odd_sizes();
  test_bad_peers();
  test_limits();
  return test::finish();
}
