// A bounded front for a server of HTTP/2 (gRPC) on this machine: it owns the public sockets, and
// forwards bytes to the server's private port on 127.0.0.1. It reads nothing of TLS.
//
// Why: gRPC's C-core applies its limits on headers only once a peer has acknowledged SETTINGS.
// Until then it takes 16 MiB of headers a stream. A header can be one byte on the wire (an HPACK
// reference), and costs some 90 bytes of memory. No option of gRPC bounds that. So the front bounds
// the bytes of a connection until a call of it was authorized (`admit`) and SETTINGS must have been
// acknowledged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace hearth {

struct FrontConfig {
  std::vector<int> listeners;  // listening sockets; the front closes them
  uint16_t backend = 0;        // the server's port on 127.0.0.1
  bool tls = false;            // the peer must begin with TLS, else with HTTP/2's preface
  size_t connections = 256;    // admitted connections at once; three quarters for one host
  size_t strangers = 64;       // open to the server and not settled yet
  size_t silent = 128;  // without a whole opening; and as many that wait for a stranger's place
  size_t stranger_bytes = 32 << 10;   // a connection may send before it is admitted,
  size_t settling_bytes = 128 << 10;  // and before it is settled (4 connections at once)
  double silence_seconds = 10.0;      // until the first authorized call
  double settle_seconds = 2.5;  // from there until SETTINGS are acknowledged or the server closed
  // A stranger that got an answer and has made no authorized call for so long makes room first.
  double patience_seconds = 0.25;
};

enum class Refusal {
  not_tls,    // it did not speak TLS
  plaintext,  // it spoke HTTP/2 without TLS
  not_http2,  // without certificates: it did not speak HTTP/2
  silent,     // no call within silence_seconds
  handshake,  // with TLS: closed without a call
  bytes,      // stranger_bytes without an authorized call
  calls,      // too many refused calls
  crowded,    // a place was needed for another connection
  full,       // all places of admitted connections, or its host's, are taken
};

struct Refused {
  std::string host;
  uint16_t port;
  Refusal cause;
};

// A connection is named by its key: the local port of the front's own connection to the server,
// which the server sees as the peer's port. Thread-safe.
class Front {
 public:
  // Starts the thread that forwards. Throws std::system_error; then the listeners are the caller's.
  explicit Front(const FrontConfig& config);
  ~Front();
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;

  // The peer's address, while its connection is open.
  std::optional<std::pair<std::string, uint16_t>> peer(uint16_t key) const;
  // Notes a call that was not authorized: the handshake of this connection did not fail. With too
  // many of them it is closed.
  void called(uint16_t key);
  // The bytes of this connection are not bounded from now on; with `settled` false, once its
  // SETTINGS are acknowledged. False if there is no place for it: it is closed.
  bool admit(uint16_t key, bool settled);
  // Waits until connections were refused, or `seconds`; the refused ones, at most 256.
  std::vector<Refused> refused(double seconds);
  // No new connections from now on.
  void stop_listening();
  // Waits until what the server sent is forwarded, `seconds` at most, and closes everything.
  void close(double seconds);
  // Open connections, those to the server among them, and admitted ones.
  std::vector<size_t> counts() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace hearth
