#include <windows.h>

#include <algorithm>
#include <string>
#include <system_error>

#include "platform/scratch_file.h"

namespace hearth {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(static_cast<int>(GetLastError()), std::system_category(), what);
}

OVERLAPPED place(uint64_t offset) {
  OVERLAPPED at = {};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  return at;
}

// Of one call.
DWORD piece(size_t size) { return static_cast<DWORD>(std::min(size, size_t{1} << 30)); }

}  // namespace

struct ScratchFile::Handles {
  HANDLE file = INVALID_HANDLE_VALUE;
  ~Handles() {
    if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
  }
};

ScratchFile::ScratchFile(const std::string& folder) : handles_(std::make_unique<Handles>()) {
  char path[MAX_PATH];
  if (GetTempFileNameA(folder.c_str(), "hrt", 0, path) == 0) fail("a new file in " + folder);
  handles_->file = CreateFileA(path, GENERIC_READ | GENERIC_WRITE, 0, nullptr, CREATE_ALWAYS,
                               FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE, nullptr);
  if (handles_->file == INVALID_HANDLE_VALUE) fail("a new file in " + folder);
}

ScratchFile::~ScratchFile() = default;

void ScratchFile::write(uint64_t offset, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    OVERLAPPED at = place(offset);
    DWORD done = 0;
    if (!WriteFile(handles_->file, bytes.data(), piece(bytes.size()), &done, &at) || done == 0)
      fail("writing weights to the disk");
    bytes = bytes.subspan(done);
    offset += done;
  }
}

void ScratchFile::finish() {
  LARGE_INTEGER end;
  if (!GetFileSizeEx(handles_->file, &end)) fail("writing weights to the disk");
  const auto size = static_cast<uint64_t>(end.QuadPart);
  const uint64_t whole = (size + kScratchUnit - 1) / kScratchUnit * kScratchUnit;
  const uint8_t zero = 0;
  if (whole > size) write(whole - 1, {&zero, 1});
  if (!FlushFileBuffers(handles_->file)) fail("writing weights to the disk");
}

void ScratchFile::read(uint64_t offset, std::span<uint8_t> bytes) const {
  while (!bytes.empty()) {
    OVERLAPPED at = place(offset);
    DWORD done = 0;
    if (!ReadFile(handles_->file, bytes.data(), piece(bytes.size()), &done, &at) || done == 0)
      fail("reading weights from the disk");
    bytes = bytes.subspan(done);
    offset += done;
  }
}

}  // namespace hearth
