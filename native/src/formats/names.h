// Names of enumerations, as options and messages carry them: one table for both directions.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace hearth {

template <typename Enum>
struct Named {
  std::string_view name;
  Enum value;
};

// Throws std::invalid_argument listing the names of the table; `what` is for example "weight type".
template <typename Enum, size_t kCount>
Enum parse_name(std::string_view what, const Named<Enum> (&table)[kCount], std::string_view name) {
  std::string names;
  for (const Named<Enum>& each : table) {
    if (each.name == name) return each.value;
    names.append(names.empty() ? "" : ", ").append(each.name);
  }
  throw std::invalid_argument("unknown " + std::string(what) + " '" +
                              std::string(name.substr(0, 32)) + "': there are " + names);
}

}  // namespace hearth
