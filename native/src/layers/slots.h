// Where a shard's slices go: their names, shapes and the members that hold them. Built once, from
// the config; each layer adds its own.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "formats/matrix.h"

namespace hearth {

// Where the packed weights of a matrix go: to the backend that computes, or to the host, which
// reads them too (then a backend with memory of its own has a copy).
enum class Home { backend, host };

struct Slot {
  size_t rows, columns;
  // A vector (one row of f32), a matrix, or several of the same shape, one below the other.
  std::variant<std::vector<float>*, Matrix*, std::vector<Matrix>*> target;
  Home home = Home::backend;
  size_t loaded_rows = 0;
};

class Slots {
 public:
  void add(const std::string& name, size_t columns, std::vector<float>& vector) {
    by_name_.emplace(name, Slot{1, columns, &vector});
  }
  void add(const std::string& name, size_t rows, size_t columns, Matrix& matrix,
           Home home = Home::backend) {
    by_name_.emplace(name, Slot{rows, columns, &matrix, home});
  }

  // rows: of each of the matrices.
  void add(const std::string& name, size_t rows, size_t columns, std::vector<Matrix>& matrices) {
    by_name_.emplace(name, Slot{rows * matrices.size(), columns, &matrices});
  }

  // nullptr for a name that is not there.
  Slot* find(const std::string& name) {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &found->second;
  }
  size_t size() const { return by_name_.size(); }
  auto begin() const { return by_name_.begin(); }
  auto end() const { return by_name_.end(); }

 private:
  std::map<std::string, Slot> by_name_;
};

}  // namespace hearth
