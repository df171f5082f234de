#include "front/link.h"

namespace hearth {

bool Backlog::flush(int fd) {
  if (empty()) return true;
  const long sent = write_some(fd, bytes_.data() + begin_, bytes_.size() - begin_);
  if (sent < 0) return false;
  begin_ += static_cast<size_t>(sent);
  if (empty()) clear();
  return true;
}

void Backlog::clear() {
  // Its memory goes too: most connections never have a backlog again.
  std::vector<uint8_t>().swap(bytes_);
  begin_ = 0;
}

long write_some(int fd, const uint8_t* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const long count = send_now(fd, data + done, size - done);
    if (count == kWouldBlock) break;
    if (count < 0) return -1;
    done += static_cast<size_t>(count);
  }
  return static_cast<long>(done);
}

}  // namespace hearth
