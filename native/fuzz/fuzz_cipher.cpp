// Records of a mesh connection, sealed and then opened: whole, damaged, repeated, left out, with
// another header, or not sealed at all. Exactly the records that come as they were sealed, in their
// order, open, and to the bytes that were sealed.
#include "hearth/mesh_cipher.h"
#include "input.h"

using namespace hearth;

namespace {

constexpr size_t kMostRecords = 6, kMostBytes = 3000, kHeaderBytes = 16;

MeshCipher choose(fuzz::Input& in) {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = mesh_ciphers();
    all.emplace_back("plain");
    return all;
  }();
  return parse_mesh_cipher(names[in.upto(names.size() - 1)]);
}

struct Record {
  std::vector<uint8_t> header, body, sealed;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const MeshCipher cipher = choose(in);
  MeshKey key{};
  for (uint8_t& byte : key) byte = in.take<uint8_t>();
  const auto sealer = make_record_cipher(cipher, RecordWay::seal, key);
  const auto opener = make_record_cipher(cipher, RecordWay::open, key);
  std::vector<Record> records(1 + in.upto(kMostRecords - 1));
  for (Record& record : records) {
    record.header = in.bytes(in.upto(1) * kHeaderBytes);
    record.body = in.bytes(in.upto(kMostBytes));
    record.sealed.resize(record.body.size() + RecordCipher::kTagBytes);
    sealer->seal(record.header.data(), record.header.size(), record.body.data(), record.body.size(),
                 record.sealed.data());
  }
  size_t next = 0;  // the record that is due
  for (size_t turn = 0; turn <= records.size(); ++turn) {
    Record sent = records[std::min(next, records.size() - 1)];
    bool good = next < records.size();
    switch (in.upto(7)) {
      case 0: {  // a byte changed, of the record or its header
        const uint8_t change = in.take<uint8_t>();
        auto& where = in.upto(1) == 1 && !sent.header.empty() ? sent.header : sent.sealed;
        where[in.upto(where.size() - 1)] ^= change;
        good = good && change == 0;
        break;
      }
      case 1:  // another record of this connection; the one that is due is as good as itself
        if (const size_t other = in.upto(records.size() - 1); other != next) {
          sent = records[other];
          good = false;
        }
        break;
      case 2:  // any bytes
        sent.sealed = in.bytes(sent.sealed.size());
        good = good && sent.sealed == records[next].sealed;
        break;
      default:
        break;
    }
    std::vector<uint8_t> out(sent.sealed.size() - RecordCipher::kTagBytes);
    const bool opened = opener->open(sent.header.data(), sent.header.size(), sent.sealed.data(),
                                     out.size(), out.data());
    fuzz::demand(opened == good, "a record opens if and only if it is the one that is due");
    if (!opened) return 0;  // its connection ends
    fuzz::demand(out == records[next].body, "a record opens to what was sealed");
    ++next;
  }
  return 0;
}
