#include "hearth/front.h"

#include <algorithm>
#include <tuple>

#include "front/loop.h"

namespace hearth {
namespace {

constexpr size_t kScratch = 128 << 10;
constexpr size_t kCautious = 16 << 10;  // read at once for a peer that is not settled
constexpr int kTurns = 8;               // reads of one socket before the others' turn
constexpr int kAccepts = 64;
constexpr size_t kMostRefused = 256;
constexpr size_t kMostKnown = 256;
constexpr int kMostRefusedCalls = 16;
constexpr size_t kMuch = 1 << 20;  // from a peer that will send more: weights, partial sums
constexpr size_t kMostRoomy = 4;
constexpr int kTickMilliseconds = 100;
// A stranger that has sent all it may: its call may be on its way to the gate.
constexpr std::chrono::seconds kStalled{2};
// For the server to close its side, or the peer to read the last bytes.
constexpr std::chrono::seconds kLeaving{5};

std::chrono::nanoseconds seconds_of(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

}  // namespace

Front::Loop::Loop(const FrontConfig& config) : config_(config), scratch_(kScratch) {
  std::tie(wake_out_, wake_in_) = socket_pair();
  for (const int fd : config.listeners) {
    if (!prepare_socket(fd)) throw_socket_error("front: O_NONBLOCK");
  }
  thread_ = std::thread([this] { run(); });
  // From here on nothing throws: the listeners are the front's.
  const std::lock_guard lock(mutex_);
  for (const int fd : config.listeners) listeners_.emplace_back(fd);
  wake();
}

Front::Loop::~Loop() { close(0.0); }

void Front::Loop::wake() {
  const uint8_t any = 0;
  send_now(wake_in_.get(), &any, 1);  // a full buffer wakes as well
}

void Front::Loop::stop_listening() {
  const std::lock_guard lock(mutex_);
  listeners_.clear();
  for (Link& link : links_) {
    if (!link.server.open()) hang_up(link);
  }
  wake();
}

void Front::Loop::close(double seconds) {
  {
    std::unique_lock lock(mutex_);
    listeners_.clear();
    wake();
    drained_.wait_for(lock, seconds_of(seconds), [this] { return links_.empty() || stopping_; });
    stopping_ = true;
    wake();
    news_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  links_.clear();
}

void Front::Loop::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    prepare();
    const bool ticking = full_ || std::any_of(links_.begin(), links_.end(), [](const Link& link) {
                           return link.stage != Stage::settled;
                         });
    lock.unlock();
    const int ready = poll_sockets(polled_, ticking ? kTickMilliseconds : -1);
    lock.lock();
    if (ready < 0)
      for (PollEntry& each : polled_) each.revents = 0;
    turn();
    if (links_.empty()) drained_.notify_all();
  }
}

void Front::Loop::prepare() {
  polled_.clear();
  polled_.push_back({wake_out_.get(), kReadable, 0});
  for (Link& link : links_) {
    short client = 0, server = 0;
    if (reads(link)) client |= kReadable;
    if (!link.down.empty()) client |= kWritable;
    if (!link.server_ended && link.down.empty()) server |= kReadable;
    if (!link.up.empty() || !link.conveyor.empty()) server |= kWritable;
    // A socket without events is left out: poll would report its errors at once, again and again.
    polled_.push_back({client != 0 ? link.client.get() : -1, client, 0});
    polled_.push_back({server != 0 ? link.server.get() : -1, server, 0});
  }
  if (full_) return;
  for (const Socket& listener : listeners_) polled_.push_back({listener.get(), kReadable, 0});
}

bool Front::Loop::reads(const Link& link) const {
  if (!link.client.open() || link.client_ended) return false;
  if (link.stage == Stage::silent) return true;
  return link.server.open() && link.up.empty() && link.conveyor.empty() && allowance(link) > 0;
}

void Front::Loop::turn() {
  uint8_t bytes[64];
  while (receive_now(wake_out_.get(), bytes, sizeof bytes) == sizeof bytes) {
  }
  // Links are added and removed here only, after this: each still has its two places.
  const PollEntry* at = polled_.data() + 1;
  for (Link& link : links_) {
    serve(link, at[0].revents, at[1].revents);
    at += 2;
  }
  std::vector<int> ready;
  for (const PollEntry* end = polled_.data() + polled_.size(); at < end; ++at)
    if (at->revents != 0) ready.push_back(at->fd);
  full_ = false;
  for (const Socket& listener : listeners_)
    if (std::find(ready.begin(), ready.end(), listener.get()) != ready.end())
      accept_from(listener.get());
  for (Link& link : links_) check_time(link);
  seek_places();
  for (auto link = links_.begin(); link != links_.end();) {
    if (is_over(*link)) {
      forget(*link);
      link = links_.erase(link);
    } else {
      ++link;
    }
  }
}

void Front::Loop::forget(const Link& link) {
  if (link.key != 0) by_key_.erase(link.key);
  const auto host = per_host_.find(link.host);
  if (--host->second == 0) per_host_.erase(host);
  if (!link.admitted) return;
  --admitted_;
  const auto admitted = admitted_per_host_.find(link.host);
  if (--admitted->second == 0) admitted_per_host_.erase(admitted);
}

// Accepting.

void Front::Loop::accept_from(int listener) {
  for (int i = 0; i < kAccepts; ++i) {
    Accepted found = accept_connection(listener);
    if (!found.socket.open()) {
      if (found.exhausted) {
        // Pending connections would wake the thread at once, again and again.
        full_ = true;
        drop_oldest(Stage::silent);
      }
      return;
    }
    if (!prepare_socket(found.socket.get())) continue;
    set_no_delay(found.socket.get());
    Link& link = links_.emplace_back();
    link.client = std::move(found.socket);
    link.host = found.host;
    link.port = found.port;
    link.deadline = FrontClock::now() + seconds_of(config_.silence_seconds);
    ++per_host_[link.host];
    if (lacks_place(link.host)) refuse(link, Refusal::full);
    limit_silent(Stage::silent);
  }
}

bool Front::Loop::lacks_place(const std::string& host) const {
  const auto mine = admitted_per_host_.find(host);
  return admitted_ >= config_.connections ||
         (mine != admitted_per_host_.end() && mine->second >= config_.connections * 3 / 4);
}

// Keeps the links of a stage without a place to config.silent, each stage by itself: links that
// have opened are not pushed out by those that send nothing.
void Front::Loop::limit_silent(Stage stage) {
  const auto count = std::count_if(links_.begin(), links_.end(),
                                   [stage](const Link& each) { return each.stage == stage; });
  if (static_cast<size_t>(count) > config_.silent) drop_oldest(stage);
}

// Of the host with the most of them, so that one host cannot push out the others.
void Front::Loop::drop_oldest(Stage stage) {
  Link* chosen = nullptr;
  for (Link& link : links_) {
    if (link.stage != stage) continue;
    // Links are in the order of their coming.
    if (chosen == nullptr || per_host_[link.host] > per_host_[chosen->host]) chosen = &link;
  }
  if (chosen != nullptr) refuse(*chosen, Refusal::crowded);
}

// Forwarding.

void Front::Loop::serve(Link& link, short client, short server) {
  if (client == 0 && server == 0) return;
  if (link.stage == Stage::silent) {
    begin(link);
    return;
  }
  if (server & (kWritable | kBroken) &&
      !(link.up.flush(link.server.get()) && link.conveyor.flush(link.server.get()))) {
    link.server_ended = true;
    link.up.clear();
    link.conveyor.clear();
  }
  if (client & (kWritable | kBroken) && !link.down.empty() && !link.down.flush(link.client.get()))
    hang_up(link);
  if (client & (kReadable | kBroken)) pump_up(link);
  if (server & (kReadable | kBroken)) pump_down(link);
}

// Reads the opening of a silent link: the ClientHello, or HTTP/2's preface and more. Only a whole
// one takes a place among the strangers, for then the server owes the answer.
void Front::Loop::begin(Link& link) {
  const size_t most = std::min(kCautious, config_.stranger_bytes - link.taken);
  const long count = receive_now(link.client.get(), scratch_.data(), most);
  if (count == kWouldBlock) return;
  if (count <= 0) {
    if (config_.tls) note(link, Refusal::handshake);
    hang_up(link);
    return;
  }
  constexpr uint8_t kTlsHandshake = 0x16;
  const uint8_t first = scratch_[0];
  if (link.taken == 0 && config_.tls && first != kTlsHandshake) {
    refuse(link, first == 'P' ? Refusal::plaintext : Refusal::not_tls);
    return;
  }
  if (link.taken == 0 && !config_.tls && first != 'P') {
    refuse(link, Refusal::not_http2);
    return;
  }
  const size_t size = static_cast<size_t>(count);
  link.taken += size;
  link.up.add(scratch_.data(), size);
  if (!config_.tls) link.acked = link.ack.feed(scratch_.data(), size);
  if (config_.tls ? link.hello.feed(scratch_.data(), size) : link.taken > SettingsAck::kPreface) {
    link.stage = Stage::waiting;
    limit_silent(Stage::waiting);
  } else if (link.taken >= config_.stranger_bytes) {
    refuse(link, Refusal::bytes);
  }
}

size_t Front::Loop::allowance(const Link& link) const {
  if (link.stage == Stage::settled) return kScratch;
  if (link.stage == Stage::closing) return 0;
  const size_t limit = link.roomy ? config_.settling_bytes : config_.stranger_bytes;
  return std::min(kCautious, limit - std::min(limit, link.taken));
}

// Forwards inside the kernel what a settled peer sends. False if this is not how it is done.
bool Front::Loop::convey(Link& link) {
  if (link.stage != Stage::settled || link.taken < kMuch) return false;
  if (!link.conveyor.is_open() && !link.conveyor.open()) {
    link.taken = 0;  // tried again later
    return false;
  }
  for (int i = 0; i < kTurns && reads(link); ++i) {
    const long count = link.conveyor.take(link.client.get());
    if (count == kWouldBlock) return true;
    if (count == kSocketFailed) {
      hang_up(link);
      return true;
    }
    if (count == 0) {
      link.client_ended = true;
      leave(link);
      return true;
    }
    if (!link.conveyor.flush(link.server.get())) {
      link.server_ended = true;
      link.conveyor.clear();
      return true;
    }
  }
  return true;
}

void Front::Loop::pump_up(Link& link) {
  if (convey(link)) return;
  for (int i = 0; i < kTurns && reads(link); ++i) {
    const size_t most = allowance(link);
    const long count = receive_now(link.client.get(), scratch_.data(), most);
    if (count == kWouldBlock) return;
    if (count == kSocketFailed) {
      hang_up(link);
      return;
    }
    if (count == 0) {
      link.client_ended = true;
      leave(link);
      return;
    }
    const size_t size = static_cast<size_t>(count);
    link.taken += size;
    if (link.stage != Stage::settled) {
      if (!config_.tls && !link.acked) link.acked = link.ack.feed(scratch_.data(), size);
      if (link.stage == Stage::settling && link.acked) settle(link);
    }
    const long sent = write_some(link.server.get(), scratch_.data(), size);
    if (sent < 0) {
      link.server_ended = true;
      return;
    }
    if (static_cast<size_t>(sent) < size) {
      link.up.add(scratch_.data() + sent, size - static_cast<size_t>(sent));
      return;
    }
    if (size < most) return;
  }
}

void Front::Loop::pump_down(Link& link) {
  for (int i = 0; i < kTurns && link.down.empty() && !link.server_ended; ++i) {
    const size_t most = link.stage == Stage::settled ? kScratch : kCautious;
    const long count = receive_now(link.server.get(), scratch_.data(), most);
    if (count == kWouldBlock) return;
    if (count <= 0) {
      link.server_ended = true;
      return;
    }
    const size_t size = static_cast<size_t>(count);
    if (!link.is_answered) link.answered = FrontClock::now();
    link.is_answered = true;
    if (!link.client.open()) continue;  // nobody is left to read it
    const long sent = write_some(link.client.get(), scratch_.data(), size);
    if (sent < 0) {
      hang_up(link);
      return;
    }
    if (static_cast<size_t>(sent) < size)
      link.down.add(scratch_.data() + sent, size - static_cast<size_t>(sent));
    if (size < most) return;
  }
}

// Places among the strangers.

size_t Front::Loop::strangers() const {
  return static_cast<size_t>(std::count_if(links_.begin(), links_.end(), [](const Link& link) {
    return link.server.open() && link.stage != Stage::settled;
  }));
}

void Front::Loop::seek_places() {
  size_t used = strangers();
  size_t leaving =
      static_cast<size_t>(std::count_if(links_.begin(), links_.end(), [](const Link& link) {
        return link.server.open() && link.stage == Stage::closing;
      }));
  for (Link& link : links_) {
    if (link.stage != Stage::waiting) continue;
    if (used < config_.strangers) {
      if (connect(link)) ++used;
    } else if (leaving > 0) {
      --leaving;  // its place will be this one's
    } else if (Link* other = crowding(); other != nullptr) {
      refuse(*other, Refusal::crowded);
    } else {
      return;
    }
  }
}

// The stranger whose place another may take: of a host without authorized calls, of the host with
// the most connections, one that may send no more. Then one that got the server's answer a while
// ago and makes nothing of it; else any, not the oldest: its handshake may wait for the server.
Link* Front::Loop::crowding() {
  std::vector<Link*> best;
  const Time late = FrontClock::now() - seconds_of(config_.patience_seconds);
  const auto rank = [&](const Link& link) {
    return std::make_tuple(!known_.contains(link.host), per_host_[link.host], link.is_stalled,
                           link.is_answered && link.answered < late);
  };
  for (Link& link : links_) {
    if (link.stage != Stage::stranger) continue;
    if (!best.empty() && rank(link) < rank(*best.front())) continue;
    if (!best.empty() && rank(link) > rank(*best.front())) best.clear();
    best.push_back(&link);
  }
  return best.empty() ? nullptr : best[random_() % best.size()];
}

bool Front::Loop::connect(Link& link) {
  uint16_t own_port = 0;
  // Over the loopback this hardly waits: the kernel answers for the server.
  Socket server = connect_loopback(config_.backend, own_port);
  if (!server.open()) {
    refuse(link, Refusal::full);
    return false;
  }
  set_no_delay(server.get());
  link.server = std::move(server);
  link.key = own_port;
  by_key_[link.key] = &link;
  link.stage = Stage::stranger;
  if (!link.up.flush(link.server.get())) link.server_ended = true;
  return true;
}

// The end of links.

void Front::Loop::check_time(Link& link) {
  if (link.server_ended) leave(link);
  if (link.stage == Stage::closing) end_server(link);
  if (link.stage == Stage::settled) return;
  const Time now = FrontClock::now();
  const bool stalled = link.stage == Stage::stranger && allowance(link) == 0;
  if (stalled && !link.is_stalled) link.stalled = now;
  link.is_stalled = stalled;
  if (stalled && now - link.stalled > kStalled) {
    refuse(link, Refusal::bytes);
  } else if (now < link.deadline) {
    return;
  } else if (link.stage == Stage::settling) {
    settle(link);
  } else if (link.stage == Stage::closing) {
    link.client.reset();
    link.server_ended = true;
  } else {
    refuse(link, Refusal::silent);
  }
}

void Front::Loop::settle(Link& link) {
  if (link.roomy) --roomy_;
  link.roomy = false;
  link.stage = Stage::settled;
}

void Front::Loop::note(Link& link, Refusal cause) {
  link.called = true;  // noted once
  if (refused_.size() >= kMostRefused) return;
  refused_.push_back({link.host, link.port, cause});
  news_.notify_all();
}

// Hangs up on a peer.
void Front::Loop::refuse(Link& link, Refusal cause) {
  if (link.stage == Stage::closing) return;
  note(link, cause);
  hang_up(link);
}

void Front::Loop::hang_up(Link& link) {
  link.client.reset();
  link.up.clear();
  link.down.clear();
  link.conveyor.clear();
  leave(link);
}

// Ends a link of which one side has ended. The server closes its side when it reads the end; until
// then the link keeps its place, for the server holds the connection's memory.
void Front::Loop::leave(Link& link) {
  if (link.stage == Stage::closing) return;
  if (config_.tls && link.stage == Stage::stranger && !link.called) note(link, Refusal::handshake);
  if (link.stage == Stage::settling) settle(link);
  link.stage = Stage::closing;
  link.deadline = FrontClock::now() + kLeaving;
  end_server(link);
}

// Tells the server that no more comes, once it has everything.
void Front::Loop::end_server(Link& link) {
  const bool pending = !link.up.empty() || !link.conveyor.empty();
  if (link.server_shut || !link.server.open() || pending) return;
  shut_down_socket_for_sending(link.server.get());
  link.server_shut = true;
}

// True when nothing is left to forward.
bool Front::Loop::is_over(const Link& link) const {
  if (link.stage != Stage::closing) return false;
  if (link.server.open() && !link.server_ended) return false;
  return link.down.empty() || !link.client.open();
}

// Requests of other threads.

Link* Front::Loop::find(uint16_t key) {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? nullptr : found->second;
}

std::optional<std::pair<std::string, uint16_t>> Front::Loop::peer(uint16_t key) {
  const std::lock_guard lock(mutex_);
  const Link* link = find(key);
  if (link == nullptr) return std::nullopt;
  return std::make_pair(link->host, link->port);
}

void Front::Loop::called(uint16_t key) {
  const std::lock_guard lock(mutex_);
  Link* link = find(key);
  if (link == nullptr || link->stage == Stage::closing) return;
  link->called = true;
  if (link->admitted || ++link->refused_calls < kMostRefusedCalls) return;
  refuse(*link, Refusal::calls);
  wake();
}

bool Front::Loop::admit(uint16_t key, bool settled) {
  const std::lock_guard lock(mutex_);
  Link* link = find(key);
  if (link == nullptr || link->stage == Stage::closing) return false;
  if (link->admitted) return true;
  link->called = true;
  if (lacks_place(link->host)) {
    refuse(*link, Refusal::full);
    wake();
    return false;
  }
  link->admitted = true;
  ++admitted_;
  ++admitted_per_host_[link->host];
  remember(link->host);
  link->stage = Stage::settling;
  link->deadline = FrontClock::now() + seconds_of(config_.settle_seconds);
  if (settled || link->acked) {
    settle(*link);
  } else if (roomy_ < kMostRoomy) {
    link->roomy = true;
    ++roomy_;
  }
  wake();
  return true;
}

void Front::Loop::remember(const std::string& host) {
  known_[host] = FrontClock::now();
  if (known_.size() <= kMostKnown) return;
  known_.erase(std::min_element(known_.begin(), known_.end(),
                                [](const auto& a, const auto& b) { return a.second < b.second; }));
}

std::vector<Refused> Front::Loop::refused(double seconds) {
  std::unique_lock lock(mutex_);
  news_.wait_for(lock, seconds_of(seconds), [this] { return !refused_.empty() || stopping_; });
  std::vector<Refused> found(refused_.begin(), refused_.end());
  refused_.clear();
  return found;
}

std::vector<size_t> Front::Loop::counts() {
  const std::lock_guard lock(mutex_);
  const auto served = std::count_if(links_.begin(), links_.end(),
                                    [](const Link& link) { return link.server.open(); });
  return {links_.size(), static_cast<size_t>(served), admitted_};
}

Front::Front(const FrontConfig& config) : loop_(std::make_unique<Loop>(config)) {}
Front::~Front() = default;
std::optional<std::pair<std::string, uint16_t>> Front::peer(uint16_t key) const {
  return loop_->peer(key);
}
void Front::called(uint16_t key) { loop_->called(key); }
bool Front::admit(uint16_t key, bool settled) { return loop_->admit(key, settled); }
std::vector<Refused> Front::refused(double seconds) { return loop_->refused(seconds); }
void Front::stop_listening() { loop_->stop_listening(); }
void Front::close(double seconds) { loop_->close(seconds); }
std::vector<size_t> Front::counts() const { return loop_->counts(); }

}  // namespace hearth
