// The mesh lane between threads of one process, over socket pairs: sums, equal bits on all ranks,
// and ranks that leave, keep silent, speak out of turn, or are stopped.
// tests/unit/test_native_mesh.py does the same over TCP; this runs under sanitizers.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "check.h"
#include "hearth/mesh.h"
#include "mesh_frames.h"
#include "sockets.h"

using namespace hearth;

namespace {

using Clock = std::chrono::steady_clock;

// A connection between every two ranks: [rank][peer], -1 at its own place.
std::vector<std::vector<int>> connect(size_t ranks) {
  std::vector<std::vector<int>> ends(ranks, std::vector<int>(ranks, -1));
  for (size_t a = 0; a < ranks; ++a) {
    for (size_t b = a + 1; b < ranks; ++b) {
      std::tie(ends[a][b], ends[b][a]) = test::pair();
    }
  }
  return ends;
}

std::unique_ptr<MeshLane> lane(const std::vector<std::vector<int>>& ends, size_t rank,
                               WireType wire, size_t direct_bytes = 0, double deadline = 60.0,
                               MeshCipher cipher = MeshCipher::plain) {
  return std::make_unique<MeshLane>(MeshConfig{.rank = rank,
                                               .sockets = ends[rank],
                                               .wire = wire,
                                               .deadline_seconds = deadline,
                                               .direct_bytes = direct_bytes,
                                               .cipher = cipher,
                                               .keys = test::keys(ends.size(), rank)});
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

void test_sums(MeshCipher cipher) {
  for (WireType wire : {WireType::f32, WireType::f16, WireType::q80}) {
    for (size_t ranks = 2; ranks <= 5; ++ranks) {
      std::vector<float> scattered;
      for (size_t direct_bytes : {size_t{0}, size_t{1} << 20}) {
        const test::Case each("cipher ", static_cast<int>(cipher), ", wire ",
                              static_cast<int>(wire), ", ", ranks, " ranks, direct up to ",
                              direct_bytes);
        const auto ends = connect(ranks);
        std::vector<std::vector<float>> results(ranks);
        uint64_t sent[8] = {}, received[8] = {};
        // One block (fewer than ranks), odd numbers of blocks, and more than a socket's buffer.
        const std::vector<size_t> sizes = {32, 96, 2080, 131072};
        on_all(ranks, [&](size_t rank) {
          const auto mine = lane(ends, rank, wire, direct_bytes, 60.0, cipher);
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
        // Whichever way they went. (Two ranks that round always go direct outside of tests.)
        if (direct_bytes == 0) {
          scattered = results[0];
        } else if (ranks > 2 || wire == WireType::f32) {
          CHECK_SAME(results[0], scattered);
        }
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

// An exact sum between others, of fewer elements than a block, has every bit in any type of wire.
void test_exact_sums() {
  for (WireType wire : {WireType::f32, WireType::f16, WireType::q80}) {
    for (size_t ranks : {2, 3}) {
      const auto ends = connect(ranks);
      std::vector<std::vector<float>> exact(ranks), rounded(ranks);
      on_all(ranks, [&](size_t rank) {
        const auto mine = lane(ends, rank, wire);
        mine->begin(0);
        exact[rank] = {1e6f + static_cast<float>(rank), 1.0f / 3.0f, 1e-12f};
        rounded[rank] = part_of(rank, 64);
        mine->all_reduce(rounded[rank].data(), 1, 64);
        mine->all_reduce(exact[rank].data(), 1, 3, true);
        mine->all_reduce(rounded[rank].data(), 1, 64);
      });
      const auto count = static_cast<float>(ranks);
      const float third = 1.0f / 3.0f, sum = ranks == 2 ? third + third : third + third + third;
      for (size_t rank = 0; rank < ranks; ++rank) {
        CHECK_EQUAL(exact[rank][0], count * 1e6f + (ranks == 2 ? 1.0f : 3.0f));
        CHECK_EQUAL(exact[rank][1], sum);
        CHECK_NEAR(exact[rank][2], count * 1e-12f, 1e-18);
        CHECK_SAME(rounded[rank], rounded[0]);
      }
    }
  }
}

// Runs rank 0 of two against `peer`, which has the other end of the connection: `work`, which is to
// fail with `part` in what it says.
void against(const std::string& part, const std::function<void(int, MeshLane&)>& peer,
             const std::function<void(MeshLane&)>& work, double deadline = 60) {
  const test::Case each(part);
  const auto ends = connect(2);
  const auto mine = lane(ends, 0, WireType::f32, 0, deadline);
  const auto start = Clock::now();
  std::thread other([&] { peer(ends[1][0], *mine); });
  CHECK_THROWS(work(*mine), LaneError, part);
  CHECK(Clock::now() - start < std::chrono::seconds(10));
  other.join();
  close_socket(ends[1][0]);
}

// All ranks measure, and come to the same; then they go on with syncs.
void test_measuring() {
  for (size_t ranks = 2; ranks <= 5; ++ranks) {
    const test::Case each(ranks, " ranks");
    const auto ends = connect(ranks);
    std::vector<LinkCosts> costs(ranks);
    std::vector<uint64_t> direct(ranks);
    std::vector<std::vector<float>> results(ranks);
    on_all(ranks, [&](size_t rank) {
      const auto mine = lane(ends, rank, WireType::f16);
      costs[rank] = mine->measure(60.0);
      direct[rank] = mine->direct_bytes();
      mine->begin(1);
      results[rank] = part_of(rank, 4096);
      mine->all_reduce(results[rank].data(), 1, 4096);
    });
    for (size_t r = 0; r < ranks; ++r) {
      CHECK(costs[r] == costs[0]);
      CHECK(costs[r] == bounded(costs[r]));
      CHECK_EQUAL(direct[r], direct_bytes(ranks, WireType::f16, costs[0]));
      CHECK_SAME(results[r], results[0]);
    }
  }
}

// A peer that answers every number with `value`, a slow one's, so that rounds of one size are
// enough.
void test_measuring_a_liar() {
  for (uint64_t value : {uint64_t{0}, ~uint64_t{0}}) {
    const auto ends = connect(2);
    const auto mine = lane(ends, 0, WireType::f32);
    std::thread peer([&] {
      test::FrameWriter writer(MeshCipher::plain, 1, 0);
      const auto say = [&](uint32_t index, const std::vector<uint8_t>& body) {
        const auto frame = writer.frame(0, index, body);
        CHECK_EQUAL(test::send_all(ends[1][0], frame.data(), frame.size()),
                    static_cast<long>(frame.size()));
      };
      const std::vector<uint8_t> number(8, static_cast<uint8_t>(value)), slow(8, 0x7f);
      uint32_t index = 0;
      while (index < 11) say(index++, number);
      for (int round = 0; round < 3; ++round) {
        say(index++, std::vector<uint8_t>(16 << 10));
        say(index++, slow);
      }
      for (int i = 0; i < 11; ++i) say(index++, number);
    });
    const LinkCosts costs = mine->measure(60.0);
    peer.join();
    CHECK(costs == bounded(costs));
    CHECK_EQUAL(mine->direct_bytes(), direct_bytes(2, WireType::f32, costs));
    if (value > 0) CHECK_EQUAL(costs.latency_ns, 10'000'000'000u);  // the limit
    // At any latency, no more than twice the speed of a round: 16 KiB in 10 s, the limit.
    CHECK(costs.byte_ps >= 5'000'000'000u / (16u << 10) * 1000u);
    close_socket(ends[1][0]);
  }
}

void test_choosing() {
  constexpr uint64_t kMost = ~uint64_t{0};
  const LinkCosts none{0, 0, 0}, most{kMost, kMost, kMost}, slow{kMost, 0, 0},
      thin{0, kMost, kMost};
  for (size_t ranks : {size_t{2}, size_t{3}, kMostRanks}) {
    // By hand: latency * 1000 * n / ((n - 1) ((n - 2) byte + (n - 1) add)), at the limits.
    const uint64_t n = ranks;
    CHECK_EQUAL(direct_bytes(n, WireType::f32, none), 1000 * n / ((n - 1) * (2 * n - 3)));
    CHECK_EQUAL(direct_bytes(n, WireType::f32, most),
                uint64_t{10'000'000'000} * 1000 * n / ((n - 1) * (2 * n - 3) * 1'000'000'000));
    CHECK_EQUAL(direct_bytes(n, WireType::f32, slow),
                uint64_t{10'000'000'000} * 1000 * n / ((n - 1) * (2 * n - 3)));
    CHECK_EQUAL(direct_bytes(n, WireType::f32, thin), uint64_t{0});
  }
  CHECK_EQUAL(direct_bytes(2, WireType::q80, none), kMost);
  CHECK_EQUAL(direct_bytes(2, WireType::f16, most), kMost);
}

void sync(MeshLane& mine, size_t numbers) {
  std::vector<float> x(numbers, 1.0f);
  mine.begin(7);
  mine.all_reduce(x.data(), 1, numbers);
}

void say(int end, const std::vector<uint32_t>& header) {
  const size_t size = header.size() * 4;
  CHECK_EQUAL(test::send_all(end, header.data(), size), static_cast<long>(size));
}

void test_bad_peers() {
  // In every way: a short sync, halves of a long one, and the first number of measuring.
  const struct {
    std::string name;
    std::function<void(MeshLane&)> work;
    uint32_t step, bytes;
  } ways[] = {
      {"direct", [](MeshLane& mine) { sync(mine, 1); }, 7, 4},
      {"scattered", [](MeshLane& mine) { sync(mine, 64); }, 7, 128},
      {"measuring", [](MeshLane& mine) { mine.measure(60.0); }, 0, 8},
  };
  for (const auto& [name, work, step, bytes] : ways) {
    const test::Case each(name);
    const std::string due =
        std::to_string(bytes) + " bytes for sync 0 of step " + std::to_string(step);
    const uint32_t magic = 0x48525448;
    against("rank 1 is lost", [](int end, MeshLane&) { shut_down_socket(end); }, work);
    against(
        "rank 1 is out of step",
        [](int end, MeshLane&) { say(end, std::vector<uint32_t>(64, 0xa5a5a5a5)); }, work);
    against(
        "it sent 4294967295 bytes for sync 0 of step " + std::to_string(step) + ", due are " + due,
        [&, step = step](int end, MeshLane&) { say(end, {magic, step, 0, 0xffffffffu}); }, work);
    against(
        "due are " + due,
        [&, step = step, bytes = bytes](int end, MeshLane&) {
          say(end, {magic, step + 1, 0, bytes});
        },
        work);
    against(
        "due are " + due,
        [&, step = step, bytes = bytes](int end, MeshLane&) { say(end, {magic, step, 1, bytes}); },
        work);
    against(
        "told to give the step up",
        [](int, MeshLane& mine) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          mine.abort();
        },
        work);
  }
  const auto short_sync = [](MeshLane& mine) { sync(mine, 64); };
  const std::string late = "rank 1 did not answer within 0.2";
  against(late, [](int, MeshLane&) {}, short_sync, 0.2);
  against(
      "rank 1 did not answer within 0.", [](int, MeshLane&) {},
      [](MeshLane& mine) { mine.measure(0.2); });
  // A byte now and then is no answer either.
  against(
      late,
      [](int end, MeshLane&) {
        const uint32_t header[4] = {0x48525448, 7, 0, 128};
        const auto* at = reinterpret_cast<const uint8_t*>(header);
        for (size_t i = 0; i < 280; ++i) {
          const uint8_t byte = i < sizeof header ? at[i] : 0;
          if (i >= 120 || test::send_all(end, &byte, 1) != 1) break;
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      },
      short_sync, 0.2);
  // The second frame of a sync in halves: sums.
  against(
      "it sent 128 bytes for sync 1 of step 7, due are 128 bytes for sync 0",
      [](int end, MeshLane&) {
        test::FrameWriter writer(MeshCipher::plain, 1, 0);
        const auto first = writer.frame(7, 0, std::vector<uint8_t>(128));
        CHECK_EQUAL(test::send_all(end, first.data(), first.size()),
                    static_cast<long>(first.size()));
        say(end, {0x48525448, 7, 1, 128});
      },
      short_sync);
}

void test_limits() {
  // A descriptor of its own each time: the lane closes it, whether it comes to be or not.
  const auto make = [](size_t rank, std::vector<int> sockets, double deadline = 1.0,
                       std::vector<MeshKeys> keys = test::keys(2, 0)) {
    const auto [own, other] = test::pair();
    for (int& socket : sockets) {
      if (socket >= 0) socket = own;
    }
    const bool given = std::count(sockets.begin(), sockets.end(), own) > 0;
    struct Check {
      ~Check() {
        uint8_t byte;
        // The other end sees that this one was closed.
        CHECK(test::readable(end, 5000));
        CHECK_EQUAL(receive_now(end, &byte, 1), 0);
        close_socket(end);
      }
      int end;
    } const check{other};
    if (!given) close_socket(own);
    MeshLane(MeshConfig{.rank = rank,
                        .sockets = std::move(sockets),
                        .wire = WireType::f32,
                        .deadline_seconds = deadline,
                        .direct_bytes = 0,
                        .cipher = MeshCipher::plain,
                        .keys = std::move(keys)});
  };
  CHECK_THROWS(make(0, {-1}), std::invalid_argument, "rank 0 of 1 ranks");
  CHECK_THROWS(make(2, {-1, -1}), std::invalid_argument, "rank 2 of 2 ranks");
  CHECK_THROWS(make(0, {-1, -1}), std::invalid_argument, "socket");
  CHECK_THROWS(make(0, {-1, 1}, 0.0), std::invalid_argument, "deadline");
  CHECK_THROWS(make(0, {-1, 1}, std::nan("")), std::invalid_argument, "deadline");
  CHECK_THROWS(make(0, {-1, 1}, 1.0, {}), std::invalid_argument, "keys of 0 of 2 ranks");
  CHECK_THROWS(make(0, {-1, 1}, 1.0, std::vector<MeshKeys>(2)), std::invalid_argument,
               "rank 1 has one key for both directions");
}

// A lane that is closed while it is in use: the sync ends, and the descriptor stays its own until
// then. (The thread sanitizer watches.)
void test_closing_during_a_sync() {
  for (int round = 0; round < 20; ++round) {
    const auto ends = connect(2);
    const auto mine = lane(ends, 0, WireType::f32), other = lane(ends, 1, WireType::f32);
    std::thread busy([&] {
      try {
        while (true) sync(*mine, 64);
      } catch (const LaneError& error) {
        CHECK_EQUAL(error.rank(), size_t{0});
        CHECK(std::string(error.what()).find("closed its lane") != std::string::npos);
      } catch (const std::logic_error& error) {  // it was between two syncs
        CHECK(std::string(error.what()).find("the lane is closed") != std::string::npos);
      }
    });
    std::thread peer([&] {
      try {
        while (true) sync(*other, 64);
      } catch (const LaneError& error) {
        CHECK(std::string(error.what()).find("rank 0 is lost") != std::string::npos);
      }
    });
    if (round % 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    mine->close();
    mine->close();
    busy.join();
    peer.join();
    std::vector<float> x(64);
    CHECK_THROWS(mine->all_reduce(x.data(), 1, 64), std::logic_error, "the lane is closed");
    uint8_t byte;
    CHECK_EQUAL(receive_now(ends[0][1], &byte, 1), kSocketFailed);  // closed
  }
}

}  // namespace

int main() {
  for (MeshCipher cipher : test::ciphers()) test_sums(cipher);
  test_odd_sizes();
  test_exact_sums();
  test_measuring();
  test_measuring_a_liar();
  test_choosing();
  test_bad_peers();
  test_limits();
  test_closing_during_a_sync();
  return test::finish();
}
