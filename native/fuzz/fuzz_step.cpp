// Any batch on a loaded shard: rows, positions, page tables, output rows, activations, in every
// type of weights and KV cache. A batch is refused in words or computed; after a refusal the shard
// computes what it did before.
#include <cmath>
#include <deque>
#include <map>
#include <stdexcept>
#include <tuple>

#include "hearth/cpu.h"
#include "hearth/shard.h"
#include "input.h"
#include "shards.h"

using namespace hearth;

namespace {

constexpr size_t kMostRows = 9;  // of which a step may have six

struct Loaded {
  std::unique_ptr<Shard> shard;
  std::vector<float> expected;
};

std::vector<float> known_step(Shard& shard) {
  const std::vector<uint32_t> tokens = {1, 20};
  std::vector<float> x(tokens.size() * shard.config().hidden_size);
  shard.embed(tokens, {}, x.data());
  std::vector<float> logits(shard.config().vocab.size());
  const std::vector<uint32_t> rows = {1};
  const std::vector<uint32_t> pages = {11};
  const std::vector<SequenceStep> sequences = {{2, 0, pages}};
  shard.step(x, sequences, rows, logits.data(), nullptr);
  return logits;
}

// One for each kind, kept: loading takes far longer than a step.
Loaded& loaded(const std::string& kernels, Type type, KvType kv_type, size_t threads) {
  static std::map<std::tuple<std::string, Type, KvType, size_t>, Loaded> all;
  Loaded& found = all[{kernels, type, kv_type, threads}];
  if (found.shard == nullptr) {
    use_kernels(kernels);
    found.shard = fuzz::small_shard(fuzz::small_config(kv_type), type, threads);
    found.expected = known_step(*found.shard);
  }
  return found;
}

// A lane that adds nothing, or fails at a sync of the input's choice.
class AnyLane : public Lane {
 public:
  explicit AnyLane(fuzz::Input& in) : left_(in.upto(4)) {}
  void all_reduce(float*, size_t, size_t, bool) override {
    if (left_-- == 0) throw std::runtime_error("lost");
  }

 private:
  size_t left_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const auto names = instruction_sets();
  // The definition is slow: the variants are held to it elsewhere.
  const std::string& kernels = names[in.upto(7) == 0 ? names.size() - 1 : 0];
  const Type type = static_cast<Type>(in.upto(3));
  const KvType kv_type = static_cast<KvType>(in.upto(2));
  const size_t threads = in.upto(15) == 0 ? 2 : 1;
  auto& [shard, expected] = loaded(kernels, type, kv_type, threads);
  const ShardConfig& config = shard->config();

  std::vector<SequenceStep> sequences;
  std::deque<std::vector<uint32_t>> tables;  // of the sequences; they stay in place
  size_t rows = 0;
  for (size_t count = in.upto(4); count > 0; --count) {
    SequenceStep sequence{in.number(5), in.number(12), {}};
    std::vector<uint32_t>& table = tables.emplace_back();
    for (size_t pages = in.upto(5); pages > 0; --pages)
      table.push_back(static_cast<uint32_t>(in.number(11)));
    sequence.pages = table;
    rows += std::min(sequence.rows, kMostRows);
    sequences.push_back(sequence);
  }
  if (in.upto(15) == 0) rows = in.upto(kMostRows);
  rows = std::min(rows, kMostRows);
  const size_t extra = in.upto(63) == 0 ? 1 : 0;
  std::vector<float> x = in.reals(rows * config.hidden_size + extra);
  std::vector<uint32_t> output_rows(in.upto(6));
  uint32_t next = 0;
  for (uint32_t& row : output_rows) {
    row = static_cast<uint32_t>(in.upto(7) == 0 ? in.number(9) : next);
    next = row + 1;
  }
  std::vector<float> logits(output_rows.size() * config.vocab.size(), -1.0f);
  AnyLane lane(in);
  bool fine = true;
  for (float each : x) fine = fine && std::abs(each) < 1e3f;

  bool refused = false;
  try {
    shard->step(x, sequences, output_rows, logits.data(), in.upto(1) ? &lane : nullptr);
    fuzz::demand(x.size() == rows * config.hidden_size, "activations are whole rows");
    fuzz::demand(rows <= config.max_step_tokens, "no more rows than planned");
  } catch (const std::invalid_argument& error) {
    fuzz::demand(error.what()[0] != '\0', "an error has words");
    refused = true;
  } catch (const std::runtime_error&) {  // the lane's
    refused = true;
  }
  fuzz::demand(shard->kv_pages() <= config.max_pages, "no more pages than planned");
  // Page 11 may hold what a step before this one wrote; it is written before it is read.
  if ((refused || fine) && in.upto(3) == 0) {
    const std::vector<float> again = known_step(*shard);
    fuzz::demand(std::memcmp(again.data(), expected.data(), again.size() * 4) == 0,
                 "a step gives the same bits after any other");
  }
  return 0;
}
