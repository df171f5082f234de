// Checks for the native tests: each prints file, line and both values when it fails, with the case
// at hand (`Case`), and the test goes on. A test binary ends with `return hearth::test::finish()`.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace hearth::test {

inline std::mutex counting;  // checks may be made on any thread, cases on the main one only
inline long checks = 0;
inline long failures = 0;
inline std::vector<std::string> cases;

// What the checks of this scope are about, printed with a failure.
class Case {
 public:
  template <typename... Parts>
  explicit Case(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    cases.push_back(text.str());
  }
  ~Case() { cases.pop_back(); }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(9);
  if constexpr (std::is_same_v<T, uint8_t> || std::is_same_v<T, int8_t>) {
    text << static_cast<int>(value);
  } else {
    text << value;
  }
  return text.str();
}

inline void record(bool good, const char* file, int line, const std::string& what) {
  const std::lock_guard lock(counting);
  ++checks;
  if (good) return;
  constexpr long kMostPrinted = 20;
  if (++failures > kMostPrinted) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  for (const auto& each : cases) std::fprintf(stderr, "    in %s\n", each.c_str());
}

template <typename A, typename B>
void equal(const A& a, const B& b, const char* file, int line, const char* text) {
  const bool good = a == b;
  record(good, file, line, good ? "" : std::string(text) + ": " + show(a) + " is not " + show(b));
}

inline void nearly(double a, double b, double tolerance, const char* file, int line,
                   const char* text) {
  const bool good = std::abs(a - b) <= tolerance;
  record(good, file, line,
         good ? ""
              : std::string(text) + ": " + show(a) + " is " + show(std::abs(a - b)) + " from " +
                    show(b) + ", more than " + show(tolerance));
}

// Not a number equals not a number; else the bits must be the same.
inline bool same_bits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

inline void same(const std::vector<float>& a, const std::vector<float>& b, const char* file,
                 int line, const char* text) {
  bool good = a.size() == b.size();
  std::string what = good ? "" : ": sizes " + show(a.size()) + " and " + show(b.size());
  for (size_t i = 0; good && i < a.size(); ++i) {
    good = same_bits(a[i], b[i]);
    if (!good) what = ": [" + show(i) + "] " + show(a[i]) + " is not " + show(b[i]);
  }
  record(good, file, line, good ? "" : text + what);
}

template <typename Error, typename Call>
void throws(Call call, const std::string& part, const char* file, int line, const char* text) {
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what();
    record(message.find(part) != std::string::npos, file, line,
           std::string(text) + " says '" + message + "', without '" + part + "'");
    return;
  } catch (const std::exception& error) {
    record(false, file, line, std::string(text) + " throws another error: " + error.what());
    return;
  }
  record(false, file, line, std::string(text) + " throws nothing");
}

inline int finish() {
  if (failures > 0) {
    std::fprintf(stderr, "%ld of %ld checks failed\n", failures, checks);
    return 1;
  }
  std::printf("%ld checks passed\n", checks);
  return checks > 0 ? 0 : 1;
}

}  // namespace hearth::test

#define CHECK(condition) ::hearth::test::record((condition), __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(a, b) ::hearth::test::equal((a), (b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_NEAR(a, b, tolerance) \
  ::hearth::test::nearly((a), (b), (tolerance), __FILE__, __LINE__, #a " near " #b)
// Vectors of floats, bit for bit.
#define CHECK_SAME(a, b) ::hearth::test::same((a), (b), __FILE__, __LINE__, #a " same as " #b)
// `part` is in the message.
#define CHECK_THROWS(call, error, part) \
  ::hearth::test::throws<error>([&] { call; }, (part), __FILE__, __LINE__, #call)
