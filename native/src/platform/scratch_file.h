// A file without a name: what is written to it is gone with the object, or with the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace hearth {

// Offsets, sizes and addresses of reads are multiples of this: reads may go around the system's
// cache.
inline constexpr size_t kScratchUnit = 4096;

class ScratchFile {
 public:
  // Throws std::system_error where the folder takes no new file.
  explicit ScratchFile(const std::string& folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  // Any offset; what lies before and was not written is zeros. Throws std::system_error.
  void write(uint64_t offset, std::span<const uint8_t> bytes);
  // No more is written. All is on the disk from now on, and not in the system's cache, which would
  // take the memory that the file is to save. Throws std::system_error.
  void finish();
  // Several threads may read at once. Throws std::system_error, also for the end of the file.
  void read(uint64_t offset, std::span<uint8_t> bytes) const;

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace hearth
