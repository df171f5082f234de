// The error of a connection of the mesh.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace hearth {

// A rank that is lost, silent or out of step, or whose frames arrive changed.
class LaneError : public std::runtime_error {
 public:
  LaneError(size_t rank, const std::string& what)
      : std::runtime_error("rank " + std::to_string(rank) + " " + what), rank_(rank) {}
  size_t rank() const { return rank_; }

 private:
  size_t rank_;
};

}  // namespace hearth
