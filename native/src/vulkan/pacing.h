// The work that goes to a GPU at once: long steps are cut, so that no piece of them keeps the
// device for longer than a system's watchdog bears (Windows: two seconds), nor a desktop that the
// same device draws.
#pragma once

#include <algorithm>

namespace hearth::vulkan {

class Pacing {
 public:
  // Seconds that a piece should take.
  static constexpr double kAim = 0.3;

  // Multiply-adds of a piece. Of a device that has shown nothing yet, few: two seconds of the
  // slowest ones.
  double most_work() const { return most_work_; }

  // After a step of so much work that was recorded for pieces of `cut_for`, and cut or not;
  // slowest: the seconds of its longest piece. True if it should be recorded again.
  bool ran(double work, double seconds, double cut_for, bool cut, double slowest) {
    if (seconds <= 0 || work <= 0) return false;
    const double fits = std::max(work / seconds * kAim, kFirstWork);
    const bool coarser = cut && fits > 2 * cut_for;
    const bool finer = slowest > 2 * kAim && fits < cut_for;
    if (coarser || finer) most_work_ = fits;
    return coarser || finer;
  }

 private:
  static constexpr double kFirstWork = 4e6;
  double most_work_ = kFirstWork;
};

}  // namespace hearth::vulkan
