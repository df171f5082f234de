// Protection of the mesh's frames against every bit of a frame changed, records repeated,
// left out, swapped, cut off, sent back. With every cipher that this machine has, and the check.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "check.h"
#include "hearth/mesh.h"
#include "mesh/mesh_exchange.h"
#include "mesh_frames.h"
#include "sockets.h"

using namespace hearth;

namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint32_t kStep = 7;

// A connection; rank 0 has a lane on one end, the test the other.
struct Pair {
  explicit Pair(MeshCipher cipher, uint64_t direct_bytes = ~uint64_t{0}) {
    int own;
    std::tie(own, peer) = test::pair();
    lane = std::make_unique<MeshLane>(MeshConfig{.rank = 0,
                                                 .sockets = {-1, own},
                                                 .wire = WireType::f32,
                                                 .deadline_seconds = 60.0,
                                                 .direct_bytes = direct_bytes,
                                                 .cipher = cipher,
                                                 .keys = test::keys(2, 0)});
    lane->begin(kStep);
  }
  ~Pair() { close_socket(peer); }

  // One sync of `elements` zeros against `bytes`; the sums.
  std::vector<float> sync(size_t elements, const Bytes& bytes, bool end = true) {
    std::thread writer([&] {
      test::send_all(peer, bytes.data(), bytes.size());
      if (end) shut_down_socket_for_sending(peer);
      Bytes sink(1 << 16);
      while (end && test::receive(peer, sink.data(), sink.size()) > 0) {
      }
    });
    std::vector<float> x(elements);
    try {
      lane->all_reduce(x.data(), 1, elements);
    } catch (...) {
      lane->close();
      writer.join();
      throw;
    }
    if (end) lane->close();
    writer.join();
    return x;
  }

  int peer;
  std::unique_ptr<MeshLane> lane;
};

Bytes payload_of(size_t elements) {
  Bytes bytes(elements * 4);
  for (size_t i = 0; i < elements; ++i) {
    const float value = static_cast<float>(i % 1000) + 0.5f;
    std::memcpy(&bytes[i * 4], &value, 4);
  }
  return bytes;
}

bool right(const std::vector<float>& sums) {
  for (size_t i = 0; i < sums.size(); ++i) {
    if (sums[i] != static_cast<float>(i % 1000) + 0.5f) return false;
  }
  return true;
}

void refused(MeshCipher cipher, const std::string& part, size_t elements, const Bytes& bytes) {
  Pair pair(cipher);
  CHECK_THROWS(pair.sync(elements, bytes), LaneError, part);
}

// "arrived changed" for what the tag finds, "out of step" for what the header's comparison finds.
void test_every_bit(MeshCipher cipher) {
  constexpr size_t kElements = 8;
  const Bytes frame = test::FrameWriter(cipher, 1, 0).frame(kStep, 0, payload_of(kElements));
  CHECK_EQUAL(frame.size(), 16 + kElements * 4 + 16);
  Pair untouched(cipher);
  CHECK(right(untouched.sync(kElements, frame)));
  for (size_t bit = 0; bit < frame.size() * 8; ++bit) {
    const test::Case each("bit ", bit);
    Bytes damaged = frame;
    damaged[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    refused(cipher, bit < 16 * 8 ? "out of step" : "arrived changed", kElements, damaged);
  }
}

// Several bits at once, at any place of a frame of several records.
void test_damage_in_large_frames(MeshCipher cipher) {
  constexpr size_t kElements = 3 * test::kRecord / 4 + 5;
  const Bytes frame = test::FrameWriter(cipher, 1, 0).frame(kStep, 0, payload_of(kElements));
  CHECK_EQUAL(frame.size(), 16 + kElements * 4 + 4 * 16);
  Pair untouched(cipher);
  CHECK(right(untouched.sync(kElements, frame)));
  uint64_t state = 1;
  for (int round = 0; round < 40; ++round) {
    Bytes damaged = frame;
    for (int flip = 0; flip <= round % 4; ++flip) {
      state = state * 6364136223846793005 + 1442695040888963407;
      damaged[(state >> 33) % damaged.size()] ^= static_cast<uint8_t>(1 << (state >> 61));
    }
    if (damaged != frame) refused(cipher, "rank 1 ", kElements, damaged);
  }
}

void test_records_out_of_place(MeshCipher cipher) {
  constexpr size_t kElements = 2 * test::kRecord / 4, kPiece = test::kRecord + test::kTag;
  const Bytes payload = payload_of(kElements);
  const Bytes frame = test::FrameWriter(cipher, 1, 0).frame(kStep, 0, payload);
  Bytes swapped = frame, repeated = frame;
  std::swap_ranges(swapped.begin() + 16, swapped.begin() + 16 + kPiece,
                   swapped.begin() + 16 + kPiece);
  refused(cipher, "arrived changed", kElements, swapped);
  std::copy_n(repeated.begin() + 16, kPiece, repeated.begin() + 16 + kPiece);
  refused(cipher, "arrived changed", kElements, repeated);
  Bytes gone = frame;  // the second record in the first one's place
  std::copy_n(frame.begin() + 16 + kPiece, kPiece, gone.begin() + 16);
  refused(cipher, "arrived changed", kElements, gone);
  for (size_t size : {size_t{0}, size_t{15}, size_t{16}, size_t{17}, kPiece, frame.size() - 1})
    refused(cipher, "rank 1 is lost", kElements, Bytes(frame.begin(), frame.begin() + size));
}

// A frame of this connection once more, in the place of a later one with the same header. (Steps
// count up, so such a place exists only where a lane begins a step again.)
void test_replay(MeshCipher cipher) {
  constexpr size_t kElements = 64;
  const Bytes frame = test::FrameWriter(cipher, 1, 0).frame(kStep, 0, payload_of(kElements));
  Pair pair(cipher);
  CHECK(right(pair.sync(kElements, frame, false)));
  pair.lane->begin(kStep);
  CHECK_THROWS(pair.sync(kElements, frame), LaneError, "arrived changed");
}

// Frames of this rank, sent back to it: the directions have different keys.
void test_reflection(MeshCipher cipher) {
  constexpr size_t kElements = 64;
  Pair pair(cipher);
  std::thread mirror([&] {
    Bytes frame(16 + kElements * 4 + 16);
    size_t at = 0;
    while (at < frame.size()) {
      const long got = test::receive(pair.peer, frame.data() + at, frame.size() - at);
      if (got <= 0) return;
      at += static_cast<size_t>(got);
    }
    test::send_all(pair.peer, frame.data(), frame.size());
  });
  std::vector<float> x(kElements, 1.0f);
  CHECK_THROWS(pair.lane->all_reduce(x.data(), 1, kElements), LaneError, "arrived changed");
  mirror.join();
}

// Frames of another connection, whose keys are others.
void test_another_key(MeshCipher cipher) {
  constexpr size_t kElements = 64;
  const Bytes frame = test::FrameWriter(cipher, 2, 0).frame(kStep, 0, payload_of(kElements));
  refused(cipher, "arrived changed", kElements, frame);
}

// Nothing of the payload is on the wire with a cipher; all of it without.
void test_secrecy(MeshCipher cipher) {
  constexpr size_t kElements = 64;
  const Bytes payload = payload_of(kElements);
  const Bytes frame = test::FrameWriter(cipher, 1, 0).frame(kStep, 0, payload);
  const bool seen =
      std::search(frame.begin(), frame.end(), payload.begin(), payload.begin() + 8) != frame.end();
  CHECK_EQUAL(seen, cipher == MeshCipher::plain);
}

// The GCM specification's test case 14: a key, a nonce and a block of zeros.
void test_known_answer() {
  const auto aes = make_record_cipher(MeshCipher::aes_256_gcm, RecordWay::seal, MeshKey{});
  const Bytes zeros(16),
      expected = {0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e, 0x07, 0x4e, 0xc5,
                  0xd3, 0xba, 0xf3, 0x9d, 0x18, 0xd0, 0xd1, 0xc8, 0xa7, 0x99, 0x99,
                  0x6b, 0xf0, 0x26, 0x5b, 0x98, 0xb5, 0xd4, 0x8a, 0xb9, 0x19};
  Bytes sealed(32);
  aes->seal(nullptr, 0, zeros.data(), 16, sealed.data());
  CHECK(sealed == expected);
}

// No two single-bit differences of a piece give one tag, whatever the key.
void test_check_finds_every_bit() {
  for (size_t size : {size_t{1}, size_t{7}, size_t{1024}, size_t{1500}}) {
    for (uint8_t byte : {uint8_t{0}, uint8_t{0xff}}) {
      MeshKey key{};
      key[0] = byte;
      Bytes data(size, byte), out(size + 16), back(size);
      make_record_cipher(MeshCipher::plain, RecordWay::seal, key)
          ->seal(nullptr, 0, data.data(), size, out.data());
      for (size_t bit = 0; bit < out.size() * 8; ++bit) {
        out[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        CHECK(!make_record_cipher(MeshCipher::plain, RecordWay::open, key)
                   ->open(nullptr, 0, out.data(), size, back.data()));
        out[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      }
      CHECK(make_record_cipher(MeshCipher::plain, RecordWay::open, key)
                ->open(nullptr, 0, out.data(), size, back.data()));
      CHECK(back == data);
    }
  }
}

// A window of no bytes would be divided by.
void test_windows_are_of_whole_records() {
  MeshLink link(MeshCipher::plain, {});
  Bytes data(3 * kRecordBytes);
  for (size_t window : {size_t{0}, size_t{1}, kRecordBytes + 1}) {
    CHECK_THROWS(
        Transfer(1, -1, link, kStep, 0, data.data(), data.size(), data.data(), data.size(), window),
        std::logic_error, "not of whole records");
  }
  const Transfer whole(1, -1, link, kStep, 0, data.data(), data.size(), data.data(), data.size(),
                       2 * kRecordBytes);
  CHECK(!whole.done());
}

}  // namespace

int main() {
  const auto names = mesh_ciphers();
  std::printf("libcrypto: %s\n", names.empty() ? "none, so only the check is tested" : "found");
  if (!names.empty()) test_known_answer();
  test_check_finds_every_bit();
  test_windows_are_of_whole_records();
  for (MeshCipher cipher : test::ciphers()) {
    const test::Case each("cipher ", static_cast<int>(cipher));
    test_every_bit(cipher);
    test_damage_in_large_frames(cipher);
    test_records_out_of_place(cipher);
    test_replay(cipher);
    test_reflection(cipher);
    test_another_key(cipher);
    test_secrecy(cipher);
  }
  return test::finish();
}
