#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "platform/scratch_file.h"

namespace hearth {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// A second descriptor of the file that reads around the system's cache; -1 where there is no such
// thing (a file system in memory, say).
int open_direct(const char* path) {
#ifdef O_DIRECT
  return ::open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
#elif defined(F_NOCACHE)
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file >= 0) ::fcntl(file, F_NOCACHE, 1);
  return file;
#else
  static_cast<void>(path);
  return -1;
#endif
}

void drop_from_cache(int file, uint64_t offset, uint64_t size) {
#ifdef POSIX_FADV_DONTNEED
  ::posix_fadvise(file, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
#else
  static_cast<void>(file), static_cast<void>(offset), static_cast<void>(size);
#endif
}

}  // namespace

struct ScratchFile::Handles {
  int file = -1, direct = -1;
  ~Handles() {
    if (file >= 0) ::close(file);
    if (direct >= 0) ::close(direct);
  }
};

ScratchFile::ScratchFile(const std::string& folder) : handles_(std::make_unique<Handles>()) {
  std::string path = folder + "/weights-XXXXXX";
  handles_->file = ::mkstemp(path.data());
  if (handles_->file < 0) fail("a new file in " + folder);
  ::fcntl(handles_->file, F_SETFD, FD_CLOEXEC);
  handles_->direct = open_direct(path.c_str());
  ::unlink(path.c_str());
}

ScratchFile::~ScratchFile() = default;

void ScratchFile::write(uint64_t offset, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t done =
        ::pwrite(handles_->file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("writing weights to the disk");
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += static_cast<uint64_t>(done);
  }
}

void ScratchFile::finish() {
  const off_t end = ::lseek(handles_->file, 0, SEEK_END);
  const off_t whole = (end + off_t{kScratchUnit} - 1) / off_t{kScratchUnit} * off_t{kScratchUnit};
  if (::ftruncate(handles_->file, whole) != 0 || ::fsync(handles_->file) != 0)
    fail("writing weights to the disk");
  drop_from_cache(handles_->file, 0, 0);
  // Some file systems take the flag, and refuse the reads: their unit is larger, or they have none.
  alignas(kScratchUnit) uint8_t unit[kScratchUnit];
  if (handles_->direct >= 0 && ::pread(handles_->direct, unit, sizeof unit, 0) < 0) {
    ::close(handles_->direct);
    handles_->direct = -1;
  }
}

void ScratchFile::read(uint64_t offset, std::span<uint8_t> bytes) const {
  const bool direct = handles_->direct >= 0;
  const uint64_t first = offset, size = bytes.size();
  while (!bytes.empty()) {
    const ssize_t done = ::pread(direct ? handles_->direct : handles_->file, bytes.data(),
                                 bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;  // it was cut short
    if (done <= 0) fail("reading weights from the disk");
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += static_cast<uint64_t>(done);
  }
  if (!direct) drop_from_cache(handles_->file, first, size);
}

}  // namespace hearth
