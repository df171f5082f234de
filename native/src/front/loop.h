// The front's thread and its connections.
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "front/link.h"
#include "hearth/front.h"

namespace hearth {

// Everything here is held under one mutex, which the thread gives up while it waits in poll.
class Front::Loop {
 public:
  explicit Loop(const FrontConfig& config);
  ~Loop();

  std::optional<std::pair<std::string, uint16_t>> peer(uint16_t key);
  void called(uint16_t key);
  bool admit(uint16_t key, bool settled);
  std::vector<Refused> refused(double seconds);
  void stop_listening();
  void close(double seconds);
  std::vector<size_t> counts();

 private:
  using Time = FrontClock::time_point;

  void run();
  void wake();
  // Poll's descriptors: the waking socket, client and server of each link, the listeners.
  void prepare();
  void turn();
  void accept_from(int listener);
  bool lacks_place(const std::string& host) const;
  void limit_silent(Stage stage);
  void drop_oldest(Stage stage);
  bool reads(const Link& link) const;
  size_t allowance(const Link& link) const;
  void serve(Link& link, short client, short server);
  void begin(Link& link);
  void pump_up(Link& link);
  bool convey(Link& link);
  void pump_down(Link& link);
  size_t strangers() const;
  void seek_places();
  Link* crowding();
  bool connect(Link& link);
  void check_time(Link& link);
  void settle(Link& link);
  void note(Link& link, Refusal cause);
  void refuse(Link& link, Refusal cause);
  void hang_up(Link& link);
  void leave(Link& link);
  void end_server(Link& link);
  bool is_over(const Link& link) const;
  void forget(const Link& link);
  Link* find(uint16_t key);
  void remember(const std::string& host);

  const FrontConfig config_;
  std::mutex mutex_;
  std::vector<Socket> listeners_;
  Socket wake_out_, wake_in_;
  std::list<Link> links_;  // in the order of their coming
  std::unordered_map<uint16_t, Link*> by_key_;
  // Links per host, and admitted ones. known_: hosts that had an authorized call.
  std::map<std::string, size_t> per_host_, admitted_per_host_;
  std::map<std::string, Time> known_;
  size_t admitted_ = 0;
  size_t roomy_ = 0;
  bool full_ = false;  // no descriptors were left: accept no more for a moment
  bool stopping_ = false;
  std::deque<Refused> refused_;
  std::condition_variable news_, drained_;
  std::minstd_rand random_{std::random_device{}()};
  std::vector<uint8_t> scratch_;
  std::vector<PollEntry> polled_;
  std::thread thread_;
};

}  // namespace hearth
