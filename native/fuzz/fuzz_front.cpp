// A front between peers that send any bytes and a server that answers, closes and admits in any
// order. What either side receives is a prefix of what the other sent; a stranger's bytes are
// bounded; whatever happens, every descriptor is closed. Also the readers of the first bytes: their
// answer does not depend on the pieces in which the bytes come.
#include <chrono>
#include <deque>

#include "front/frames.h"
#include "hearth/front.h"
#include "input.h"
#include "mesh_peers.h"

using namespace hearth;

namespace {

constexpr size_t kStrangerBytes = 200, kSettlingBytes = 400;
constexpr size_t kMostPeers = 6;
constexpr int kMilliseconds = 2;  // for the front's thread
constexpr auto kMostSeconds = std::chrono::seconds(5);

bool readable(int fd) { return test::readable(fd, kMilliseconds); }

// One connection: of the peer and, once the front has made it, of the server.
struct Conversation {
  int peer = -1, server = -1;
  uint16_t port = 0, key = 0;  // of the peer; of the front towards the server
  bool admitted = false;
  std::string up, down, taken, answered;  // sent by the peer and by the server; received by them
};

void send_some(int fd, const std::vector<uint8_t>& bytes, std::string& sent) {
  const long count = send_now(fd, bytes.data(), bytes.size());
  if (count > 0) sent.append(bytes.begin(), bytes.begin() + count);
}

void receive_some(int fd, std::string& received) {
  uint8_t part[4096];
  while (readable(fd)) {
    const long count = receive_now(fd, part, sizeof part);
    if (count <= 0) return;
    received.append(part, part + count);
  }
}

void close_one(int& fd) {
  if (fd >= 0) close_socket(fd);
  fd = -1;
}

// A plausible opening, or any bytes.
std::vector<uint8_t> opening(fuzz::Input& in, bool tls) {
  if (in.upto(3) == 0) return in.bytes(in.upto(300));
  std::vector<uint8_t> bytes;
  if (tls) {
    const size_t size = in.upto(150);
    bytes = {0x16, 3, 1, 0, static_cast<uint8_t>(size)};
    const auto body = in.bytes(size);
    bytes.insert(bytes.end(), body.begin(), body.end());
  } else {
    const std::string preface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
    bytes.assign(preface.begin(), preface.end());
    const auto more = in.bytes(in.upto(60));
    bytes.insert(bytes.end(), more.begin(), more.end());
  }
  bytes.resize(bytes.size() - in.upto(bytes.size()) / 8);
  return bytes;
}

void talk(fuzz::Input& in) {
  FrontConfig config;
  uint16_t port = 0;
  config.listeners = {test::listening(port)};
  const int server = test::listening(config.backend);
  config.tls = in.upto(1) == 1;
  config.connections = 1 + in.upto(3);
  config.strangers = 1 + in.upto(3);
  config.silent = 1 + in.upto(3);
  config.stranger_bytes = kStrangerBytes;
  config.settling_bytes = kSettlingBytes;
  config.silence_seconds = in.upto(7) == 0 ? 0.0 : 10.0;
  config.settle_seconds = in.upto(1) == 0 ? 0.0 : 10.0;
  Front front(config);
  std::deque<Conversation> all;
  const auto accept_all = [&] {
    while (readable(server)) {
      Accepted made = accept_connection(server);
      if (!made.socket.open()) return;
      const auto who = front.peer(made.port);
      Conversation* found = nullptr;
      for (Conversation& each : all) {
        if (each.peer >= 0 && who && each.server < 0 && each.port == who->second) found = &each;
      }
      if (found == nullptr || !prepare_socket(made.socket.get())) continue;  // its peer has gone
      found->server = made.socket.release();
      found->key = made.port;
    }
  };
  for (size_t turn = 0; turn < 40 && !in.empty(); ++turn) {
    const size_t action = in.upto(9);
    if (action == 0 && all.size() < kMostPeers) {
      Conversation& made = all.emplace_back();
      made.peer = connect_loopback(port, made.port).release();
      if (made.peer >= 0) send_some(made.peer, opening(in, config.tls), made.up);
      continue;
    }
    if (action == 1) front.called(in.take<uint16_t>());
    if (action == 2) {
      accept_all();
      const auto counts = front.counts();
      fuzz::demand(counts.size() == 3 && counts[1] <= counts[0] &&
                       counts[2] <= config.connections + kMostPeers,
                   "counts agree");
    }
    if (all.empty()) continue;
    Conversation& one = all[in.upto(all.size() - 1)];
    if (action == 3 && one.peer >= 0) send_some(one.peer, in.bytes(in.upto(250)), one.up);
    if (action == 4 && one.server >= 0) send_some(one.server, in.bytes(in.upto(250)), one.down);
    if (action == 5 && one.server >= 0) receive_some(one.server, one.taken);
    if (action == 6 && one.peer >= 0) receive_some(one.peer, one.answered);
    if (action == 7 && one.server >= 0) {
      one.admitted = front.admit(one.key, in.upto(1) == 1) || one.admitted;
    }
    if (action == 8) in.upto(1) == 1 ? close_one(one.peer) : close_one(one.server);
    if (action == 9 && one.peer >= 0) shut_down_socket_for_sending(one.peer);
    fuzz::demand(one.up.starts_with(one.taken), "the server reads what the peer sent");
    fuzz::demand(one.down.starts_with(one.answered), "the peer reads what the server sent");
    fuzz::demand(one.admitted || one.taken.size() <= kStrangerBytes, "a stranger sends little");
  }
  if (in.upto(3) == 0) front.stop_listening();
  front.close(0.0);
  for (Conversation& one : all) {
    close_one(one.peer);
    close_one(one.server);
  }
  close_socket(server);
}

// The answer of a reader to bytes in pieces, and to all at once.
template <typename Reader>
bool in_pieces(fuzz::Input in, const std::vector<uint8_t>& bytes) {
  Reader reader;
  bool found = false;
  for (size_t at = 0; at < bytes.size();) {
    const size_t piece = std::min(bytes.size() - at, 1 + in.upto(40));
    const bool now = reader.feed(bytes.data() + at, piece);
    fuzz::demand(now || !found, "an answer stays");
    found = now;
    at += piece;
  }
  return found;
}

void read_openings(fuzz::Input& in) {
  const auto bytes = in.bytes(in.upto(400));
  FirstRecord record;
  const bool whole = record.feed(bytes.data(), bytes.size());
  fuzz::demand(whole == (bytes.size() >= 5 &&
                         bytes.size() - 5 >= static_cast<size_t>(bytes[3]) * 256 + bytes[4]),
               "a record is whole with the bytes that its header claims");
  fuzz::demand(in_pieces<FirstRecord>(in, bytes) == whole, "pieces of a record do not matter");
  SettingsAck ack;
  const bool acked = ack.feed(bytes.data(), bytes.size());
  fuzz::demand(in_pieces<SettingsAck>(in, bytes) == acked, "pieces of frames do not matter");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const auto start = std::chrono::steady_clock::now();
  if (in.upto(3) == 0) {
    read_openings(in);
    return 0;
  }
  const int free_before = fuzz::lowest_free_descriptor();
  talk(in);
  fuzz::demand(fuzz::lowest_free_descriptor() == free_before, "every descriptor is closed");
  fuzz::demand(std::chrono::steady_clock::now() - start < kMostSeconds, "the front ends in time");
  return 0;
}
