// The front between two ends of this test: what it forwards, whom it admits, whom it closes.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "front/frames.h"
#include "hearth/front.h"
#include "sockets.h"

using namespace hearth;

namespace {

constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const std::string kAck("\0\0\0\4\1\0\0\0\0", 9);
const std::string kSettings("\0\0\0\4\0\0\0\0\0", 9);

// Everything that comes, until `size` bytes, the end of the connection, or silence.
std::string read_all(int fd, size_t size, int milliseconds = 5000) {
  std::string found;
  std::vector<char> part(1 << 16);
  while (found.size() < size && test::readable(fd, milliseconds)) {
    const long count = test::receive(fd, part.data(), std::min(part.size(), size - found.size()));
    if (count <= 0) break;
    found.append(part.data(), static_cast<size_t>(count));
  }
  return found;
}

bool ended(int fd) {
  char byte;
  return test::readable(fd, 5000) && test::receive(fd, &byte, 1) <= 0;
}

void send_all(int fd, const std::string& data) { test::send_all(fd, data.data(), data.size()); }

// A front, the server behind it, and its peers.
class Scene {
 public:
  explicit Scene(const std::function<void(FrontConfig&)>& change = [](FrontConfig&) {}) {
    FrontConfig config;
    config.listeners = {test::listening(port_)};
    server_ = test::listening(config.backend);
    change(config);
    front = std::make_unique<Front>(config);
  }
  ~Scene() {
    front.reset();
    for (const int fd : open_) close_socket(fd);
    close_socket(server_);
  }

  int peer(const std::string& first = kPreface + kSettings) {
    uint16_t own_port = 0;
    const int fd = connect_loopback(port_, own_port).release();
    CHECK(fd >= 0);
    open_.push_back(fd);
    send_all(fd, first);
    return fd;
  }

  // The server's end of the next connection; its key.
  int served(uint16_t& key) {
    if (!test::readable(server_, 5000)) return -1;
    Accepted found = accept_connection(server_);
    key = found.port;
    const int fd = found.socket.release();
    CHECK(prepare_socket(fd));
    open_.push_back(fd);
    return fd;
  }

  bool serves_another() const { return test::readable(server_, 200); }

  Refusal cause() {
    const auto found = front->refused(5.0);
    CHECK_EQUAL(found.size(), size_t{1});
    CHECK_EQUAL(found.empty() ? "" : found[0].host, std::string("127.0.0.1"));
    return found.empty() ? Refusal::full : found[0].cause;
  }

  std::unique_ptr<Front> front;

 private:
  uint16_t port_ = 0;
  int server_ = -1;
  std::vector<int> open_;
};

void test_acknowledgement_in_pieces() {
  const std::string data(8, 'x');
  std::string stream = kPreface + kSettings;
  stream += std::string("\0\0\x08\1\4\0\0\0\1", 9) + data;
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, size_t{1000}}) {
    const test::Case at("pieces of ", piece);
    SettingsAck ack;
    const std::string whole = stream + kAck;
    for (size_t i = 0; i < whole.size(); i += piece) {
      const std::string part = whole.substr(i, piece);
      const bool found = ack.feed(reinterpret_cast<const uint8_t*>(part.data()), part.size());
      CHECK_EQUAL(found, i + piece >= whole.size());
    }
  }
  // Neither settings of the peer nor an acknowledgement inside of data count.
  SettingsAck none;
  const std::string inside = stream + std::string("\0\0\x09\0\0\0\0\0\1", 9) + kAck;
  CHECK(!none.feed(reinterpret_cast<const uint8_t*>(inside.data()), inside.size()));
}

void test_first_record_in_pieces() {
  const std::string whole = std::string("\x16\3\1\1\4", 5) + std::string(260, 'h');
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{5}, size_t{6}, size_t{1000}}) {
    const test::Case at("pieces of ", piece);
    FirstRecord record;
    for (size_t i = 0; i < whole.size(); i += piece) {
      const std::string part = whole.substr(i, piece);
      const bool found = record.feed(reinterpret_cast<const uint8_t*>(part.data()), part.size());
      CHECK_EQUAL(found, i + piece >= whole.size());
    }
  }
}

void test_forwards_both_ways() {
  Scene scene;
  const int peer = scene.peer(kPreface + kSettings + kAck);
  uint16_t key = 0;
  const int server = scene.served(key);
  CHECK_EQUAL(read_all(server, 42).size(), size_t{42});
  CHECK(scene.front->admit(key, false));  // acknowledged: unbounded at once
  CHECK_EQUAL(scene.front->peer(key)->first, std::string("127.0.0.1"));
  std::string much(3 << 20, 'a');
  for (size_t i = 0; i < much.size(); ++i) much[i] = static_cast<char>(i * 7 + i / 251);
  std::thread up([&] { send_all(peer, much); });
  CHECK(read_all(server, much.size()) == much);
  up.join();
  std::thread down([&] { send_all(server, much); });
  CHECK(read_all(peer, much.size()) == much);
  down.join();
  shut_down_socket_for_sending(peer);
  CHECK(ended(server));
  send_all(server, "last");
  CHECK_EQUAL(read_all(peer, 4), std::string("last"));
}

void test_a_stranger_may_send_little() {
  Scene scene([](FrontConfig& config) { config.stranger_bytes = 1000; });
  const int peer = scene.peer();
  send_all(peer, std::string(50'000, 'x'));
  uint16_t key = 0;
  const int server = scene.served(key);
  CHECK_EQUAL(read_all(server, 50'000, 300).size(), size_t{1000});
  CHECK(scene.cause() == Refusal::bytes);
  CHECK(ended(peer));
  CHECK(ended(server));
}

void test_admitted_but_not_acknowledged() {
  Scene scene([](FrontConfig& config) {
    config.stranger_bytes = 1000;
    config.settling_bytes = 5000;
    config.settle_seconds = 1.0;
  });
  const int peer = scene.peer();
  send_all(peer, std::string(50'000, 'x'));
  uint16_t key = 0;
  const int server = scene.served(key);
  CHECK_EQUAL(read_all(server, 1000).size(), size_t{1000});
  CHECK(scene.front->admit(key, false));
  CHECK_EQUAL(read_all(server, 50'000, 300).size(), size_t{4000});
  // By now the server would have closed a connection without an acknowledgement.
  CHECK_EQUAL(read_all(server, 45'033).size(), size_t{45'033});
  CHECK(scene.front->admit(key, false));
}

void test_what_is_refused() {
  Scene plain;
  CHECK(ended(plain.peer("GET / HTTP/1.1\r\n")));
  CHECK(plain.cause() == Refusal::not_http2);
  CHECK(!plain.serves_another());
  Scene secured([](FrontConfig& config) { config.tls = true; });
  CHECK(ended(secured.peer()));
  CHECK(secured.cause() == Refusal::plaintext);
  CHECK(ended(secured.peer("GET / HTTP/1.1\r\n")));
  CHECK(secured.cause() == Refusal::not_tls);
  const std::string record("\x16\3\1\0\1!", 6);
  const int hello = secured.peer(record);
  uint16_t key = 0;
  const int server = secured.served(key);
  shut_down_socket(hello);
  CHECK(secured.cause() == Refusal::handshake);
  CHECK_EQUAL(read_all(server, 100), record);
  Scene hasty([](FrontConfig& config) { config.silence_seconds = 0.3; });
  CHECK(ended(hasty.peer("")));
  CHECK(hasty.cause() == Refusal::silent);
  CHECK(ended(hasty.peer()));
  CHECK(hasty.cause() == Refusal::silent);
}

void test_refused_calls_are_counted() {
  Scene scene;
  const int peer = scene.peer();
  uint16_t key = 0;
  scene.served(key);
  for (int i = 0; i < 100; ++i) scene.front->called(key);
  CHECK(scene.cause() == Refusal::calls);
  CHECK(ended(peer));
}

void test_a_newcomer_gets_a_place() {
  Scene scene([](FrontConfig& config) {
    config.strangers = 3;
    config.connections = 4;
  });
  std::vector<int> peers;
  uint16_t admitted = 0;
  for (int i = 0; i < 3; ++i) {
    peers.push_back(scene.peer());
    uint16_t key = 0;
    CHECK(scene.served(key) >= 0);
    if (i == 0) admitted = key;
  }
  CHECK(scene.front->admit(admitted, true));
  // The admitted one left the strangers: one more has a place, for the next one must go.
  uint16_t key = 0;
  scene.peer();
  CHECK(scene.served(key) >= 0);
  CHECK(scene.front->refused(0.0).empty());
  scene.peer();
  CHECK(scene.cause() == Refusal::crowded);
  CHECK_EQUAL(scene.front->counts()[2], size_t{1});
  CHECK(!test::readable(peers[0], 200));  // never the admitted one
}

// One that makes nothing of the server's answer gives its place before those that wait for theirs.
void test_one_that_got_its_answer_makes_room() {
  Scene scene([](FrontConfig& config) {
    config.strangers = 5;
    config.patience_seconds = 0.02;
  });
  std::vector<int> peers, servers;
  uint16_t key = 0;
  for (int i = 0; i < 5; ++i) {
    peers.push_back(scene.peer());
    servers.push_back(scene.served(key));
    CHECK(servers.back() >= 0);
  }
  send_all(servers[3], "x");
  CHECK_EQUAL(read_all(peers[3], 1), std::string("x"));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  scene.peer();
  CHECK(scene.cause() == Refusal::crowded);
  CHECK(ended(peers[3]));
  for (const size_t other : {0, 1, 2, 4}) CHECK(!test::readable(peers[other], 10));
}

// A flood of connections without a whole ClientHello takes no place of those that have sent one.
void test_half_an_opening_takes_no_place() {
  Scene scene([](FrontConfig& config) {
    config.tls = true;
    config.strangers = 3;
    config.silent = 10;
  });
  const std::string hello = std::string("\x16\3\1\0\4", 5) + "hiya";
  const int own = scene.peer(hello);
  uint16_t key = 0;
  const int server = scene.served(key);
  for (int i = 0; i < 40; ++i) scene.peer(hello.substr(0, static_cast<size_t>(1 + i % 8)));
  CHECK(!scene.serves_another());
  CHECK_EQUAL(read_all(server, 9), hello);
  send_all(server, "hello yourself");
  CHECK_EQUAL(read_all(own, 14), std::string("hello yourself"));
  // Another one is served as well, although its ClientHello comes in two pieces.
  const int late = scene.peer(hello.substr(0, 6));
  CHECK(!scene.serves_another());
  send_all(late, hello.substr(6));
  CHECK_EQUAL(read_all(scene.served(key), 9), hello);
}

void test_silent_ones_make_room() {
  Scene scene([](FrontConfig& config) { config.silent = 10; });
  std::vector<int> peers;
  for (int i = 0; i < 40; ++i) peers.push_back(scene.peer(""));
  for (int i = 0; i < 30; ++i) CHECK(ended(peers[static_cast<size_t>(i)]));
  CHECK(!test::readable(peers[39], 100));
  uint16_t key = 0;
  scene.peer();
  CHECK(scene.served(key) >= 0);
}

void test_one_host_has_three_quarters() {
  Scene scene([](FrontConfig& config) { config.connections = 4; });
  for (int i = 0; i < 3; ++i) {
    scene.peer();
    uint16_t key = 0;
    scene.served(key);
    CHECK(scene.front->admit(key, true));
  }
  CHECK(ended(scene.peer()));
  CHECK(scene.cause() == Refusal::full);
}

void test_the_end() {
  Scene scene;
  const int peer = scene.peer();
  uint16_t key = 0;
  const int server = scene.served(key);
  scene.front->stop_listening();
  send_all(server, "bye");
  shut_down_socket(server);
  scene.front->close(5.0);
  CHECK_EQUAL(read_all(peer, 100), std::string("bye"));
  CHECK(!scene.front->admit(key, true));
  CHECK(!scene.front->peer(key).has_value());
}

}  // namespace

int main() {
  test_acknowledgement_in_pieces();
  test_first_record_in_pieces();
  test_forwards_both_ways();
  test_a_stranger_may_send_little();
  test_admitted_but_not_acknowledged();
  test_what_is_refused();
  test_refused_calls_are_counted();
  test_a_newcomer_gets_a_place();
  test_one_that_got_its_answer_makes_room();
  test_half_an_opening_takes_no_place();
  test_silent_ones_make_room();
  test_one_host_has_three_quarters();
  test_the_end();
  return test::finish();
}
