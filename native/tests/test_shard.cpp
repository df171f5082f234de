// A shard and its steps: refused input; the same bits for any threads, cuts of the prompt and other
// sequences in the batch; ranks that add up over a lane, or lose it halfway. The tests in Python
// compare the results with independent references.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "configs.h"
#include "hearth/cpu.h"
#include "hearth/devices.h"
#include "hearth/quant.h"
#include "hearth/shard.h"
#include "shard/disk_sum.h"

using namespace hearth;

namespace {

constexpr size_t kHidden = 64, kLayers = 2, kHeads = 8, kKvHeads = 2, kHeadSize = 32, kFfn = 96,
                 kVocab = 37;

ShardConfig whole(KvType kv_type = KvType::f32) {
  ShardConfig config = test::block_config({.hidden_size = kHidden,
                                           .layers = {0, kLayers},
                                           .heads = {0, kHeads},
                                           .kv_heads = {0, kKvHeads},
                                           .head_size = kHeadSize,
                                           .units = {0, kFfn}});
  config.kv_type = kv_type;
  config.vocab = {0, kVocab};
  config.vocab_size = kVocab;
  config.embedding = true;
  return config;
}

// Rank `rank` of two: half the heads, a third or two thirds of the feed-forward, a part of the
// vocabulary.
ShardConfig half(size_t rank) {
  ShardConfig config = whole();
  AttentionConfig& attention = test::attention_of(config.kinds[0]);
  attention.heads = rank == 0 ? Span{0, 4} : Span{4, 8};
  attention.kv_heads = rank == 0 ? Span{0, 1} : Span{1, 2};
  config.kinds[0].feed_forward.units = rank == 0 ? Span{0, 32} : Span{32, kFfn};
  config.vocab = rank == 0 ? Span{0, 16} : Span{16, kVocab};
  config.embedding = rank == 0;
  return config;
}

// The rows and columns of the whole tensor that a slice of this shard has.
std::pair<Span, Span> cut_of(const ShardConfig& c, const std::string& name) {
  const std::string last = name.substr(name.rfind('.') + 1);
  const Span all{0, kHidden};
  const auto heads = [&](Span span) { return Span{span.begin * kHeadSize, span.end * kHeadSize}; };
  const AttentionConfig& attention = test::attention_of(c.kinds[0]);
  const Span units = c.kinds[0].feed_forward.units;
  if (last == "wq") return {heads(attention.heads), all};
  if (last == "wk" || last == "wv") return {heads(attention.kv_heads), all};
  if (last == "wo") return {all, heads(attention.heads)};
  if (last == "w1" || last == "w3") return {units, all};
  if (last == "w2") return {all, units};
  if (last == "head") return {c.vocab, all};
  if (last == "embedding") return {{0, kVocab}, all};
  return {{0, 1}, all};
}

std::vector<uint8_t> slice(const ShardConfig& config, const std::string& name, Type type) {
  const auto [rows, columns] = cut_of(config, name);
  std::vector<uint8_t> bytes(rows.size() * row_bytes(type, columns.size()));
  if (name.ends_with("norm")) {
    const std::vector<float> ones(kHidden, 1.0f);
    std::memcpy(bytes.data(), ones.data(), bytes.size());
    return bytes;
  }
  const uint64_t seed = std::hash<std::string>{}(name);
  random_rows(type, {seed, rows.begin, rows.size(), columns.begin, columns.size(), 0.15f},
              bytes.data());
  return bytes;
}

Type type_of(const std::string& name, Type type) {
  return name.ends_with("norm") ? Type::f32 : type;
}

std::unique_ptr<Shard> make(const ShardConfig& config, Type type, size_t threads,
                            const std::vector<size_t>& on_disk = {}) {
  const DiskWeights disk = {on_disk, std::filesystem::temp_directory_path().string()};
  auto shard = std::make_unique<Shard>(config, threads, std::vector<int>{}, "cpu", disk);
  for (const auto& [name, shape] : shard->expected())
    shard->load(name, type_of(name, type), slice(config, name, type_of(name, type)));
  return shard;
}

struct Output {
  std::vector<float> x, logits;
};

// A SequenceStep that owns its pages.
struct Sequence {
  size_t rows, position;
  std::vector<uint32_t> pages;
};

StepTiming step(Shard& shard, std::span<float> x, const std::vector<Sequence>& sequences,
                std::span<const uint32_t> output_rows, float* logits, Lane* lane) {
  std::vector<SequenceStep> steps;
  for (const auto& [rows, position, pages] : sequences) steps.push_back({rows, position, pages});
  return shard.step(x, steps, output_rows, logits, lane);
}

Output run(Shard& shard, std::vector<float> x, const std::vector<Sequence>& sequences,
           const std::vector<uint32_t>& output_rows, Lane* lane = nullptr) {
  Output out{std::move(x), std::vector<float>(output_rows.size() * shard.config().vocab.size())};
  const StepTiming timing = step(shard, out.x, sequences, output_rows, out.logits.data(), lane);
  CHECK(timing.compute_ns + timing.sync_ns == timing.wall_ns);
  return out;
}

std::vector<float> embed(const Shard& shard, const std::vector<uint32_t>& tokens) {
  std::vector<float> x(tokens.size() * kHidden);
  shard.embed(tokens, {}, x.data());
  return x;
}

const std::vector<uint32_t> kPrompt = {5, 0, 36, 17, 17, 2, 30, 9, 11};
const std::vector<uint32_t> kPages = {3, 0, 7};
const std::vector<uint32_t> kAllRows = {0, 1, 2, 3, 4, 5, 6, 7, 8};

Output run_prompt(Shard& shard, Lane* lane = nullptr) {
  return run(shard, embed(shard, kPrompt), {{kPrompt.size(), 0, kPages}}, kAllRows, lane);
}

std::vector<float> rows_of(const std::vector<float>& all, size_t width, size_t begin, size_t end) {
  return {all.begin() + static_cast<std::ptrdiff_t>(begin * width),
          all.begin() + static_cast<std::ptrdiff_t>(end * width)};
}

// The same bits on any number of threads, with the prompt cut anywhere, and in any company.
void test_invariance() {
  for (const auto& name : instruction_sets()) {
    use_kernels(name);
    const std::pair<Type, KvType> kinds[] = {{Type::f32, KvType::f32},
                                             {Type::f16, KvType::f16},
                                             {Type::q80, KvType::f32},
                                             {Type::q40, KvType::f16},
                                             {Type::q40, KvType::q80}};
    for (const auto& [type, kv_type] : kinds) {
      const test::Case each(name, " ", type_name(type), ", KV type ", static_cast<int>(kv_type));
      const ShardConfig config = whole(kv_type);
      const auto single = make(config, type, 1);
      const Output expected = run_prompt(*single);
      for (float logit : expected.logits) CHECK(std::isfinite(logit));
      for (size_t threads : {2, 3, 8}) {
        const test::Case with(threads, " threads");
        const Output got = run_prompt(*make(config, type, threads));
        CHECK_SAME(got.logits, expected.logits);
        CHECK_SAME(got.x, expected.x);
      }
      for (size_t cut = 1; cut < kPrompt.size(); ++cut) {
        const test::Case at("prompt cut at ", cut);
        const auto shard = make(config, type, 2);
        const std::vector<float> x = embed(*shard, kPrompt);
        run(*shard, rows_of(x, kHidden, 0, cut), {{cut, 0, kPages}}, {});
        // With another sequence before it in the batch, on other pages.
        const size_t rest = kPrompt.size() - cut;
        std::vector<float> batch = embed(*shard, {1, 2});
        batch.insert(batch.end(), x.begin() + static_cast<std::ptrdiff_t>(cut * kHidden), x.end());
        const Output got = run(*shard, batch, {{2, 0, {9}}, {rest, cut, kPages}},
                               {static_cast<uint32_t>(rest + 1)});
        CHECK_SAME(got.logits,
                   rows_of(expected.logits, kVocab, kPrompt.size() - 1, kPrompt.size()));
      }
    }
  }
  use_kernels(instruction_sets().front());
}

// Kernels agree bit for bit in the products; exp differs in the last places, which a few layers of
// quantized activations can raise to a step of a quantized number, a 127th.
void test_instruction_sets_agree() {
  for (Type type : {Type::f32, Type::q80, Type::q40}) {
    use_kernels("scalar");
    const Output expected = run_prompt(*make(whole(), type, 1));
    for (const auto& name : instruction_sets()) {
      const test::Case each(name, " ", type_name(type));
      use_kernels(name);
      const Output got = run_prompt(*make(whole(), type, 1));
      for (size_t i = 0; i < got.logits.size(); ++i)
        CHECK_NEAR(got.logits[i], expected.logits[i], is_quantized(type) ? 0.02 : 1e-4);
    }
  }
}

void test_tied_head() {
  ShardConfig config = whole();
  config.head_from_embedding = true;
  const auto tied = make(config, Type::q40, 2);
  CHECK(!tied->expected().contains("head"));
  const auto untied = std::make_unique<Shard>(whole(), 2);
  for (const auto& [name, shape] : untied->expected()) {
    const std::string source = name == "head" ? "embedding" : name;
    untied->load(name, type_of(name, Type::q40), slice(whole(), source, type_of(name, Type::q40)));
  }
  CHECK_SAME(run_prompt(*tied).logits, run_prompt(*untied).logits);
}

// Adds up over two ranks in the order of their numbers; gives up when one of them does.
class Meeting {
 public:
  void all_reduce(size_t rank, float* x, size_t count) {
    std::unique_lock lock(mutex_);
    if (lost_) throw std::runtime_error("rank lost");
    parts_[rank] = {x, x + count};
    const uint64_t round = round_;
    if (++arrived_ == 2) {
      arrived_ = 0;
      // Apart from the parts: the rank that came last may be back with the next before the other
      // has taken these.
      sum_ = parts_[0];
      for (size_t i = 0; i < count; ++i) sum_[i] += parts_[1][i];
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round || lost_; });
    }
    if (round_ == round) throw std::runtime_error("rank lost");
    std::copy(sum_.begin(), sum_.end(), x);
  }
  void lose() {
    const std::lock_guard lock(mutex_);
    lost_ = true;
    all_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  std::vector<float> parts_[2], sum_;
  size_t arrived_ = 0;
  uint64_t round_ = 0;
  bool lost_ = false;
};

class MeetingLane : public Lane {
 public:
  MeetingLane(Meeting& meeting, size_t rank, int syncs_before_loss = 1 << 30)
      : meeting_(meeting), rank_(rank), left_(syncs_before_loss) {}
  void all_reduce(float* x, size_t rows, size_t columns, bool) override {
    CHECK_EQUAL(columns, kHidden);
    if (left_-- == 0) {
      meeting_.lose();
      throw std::runtime_error("this rank gives up");
    }
    meeting_.all_reduce(rank_, x, rows * columns);
  }

 private:
  Meeting& meeting_;
  size_t rank_;
  int left_;
};

// Sums over ranks are in another order than sums over columns: rounding only, in f32.
void test_two_ranks() {
  const Output expected = run_prompt(*make(whole(), Type::f32, 1));
  Meeting meeting;
  Output outputs[2];
  const auto embedder = make(whole(), Type::f32, 1);
  const std::vector<float> x = embed(*embedder, kPrompt);
  std::thread ranks[2];
  for (size_t rank = 0; rank < 2; ++rank) {
    ranks[rank] = std::thread([&, rank] {
      const auto shard = make(half(rank), Type::f32, 2);
      MeetingLane lane(meeting, rank);
      outputs[rank] = run(*shard, x, {{kPrompt.size(), 0, kPages}}, kAllRows, &lane);
    });
  }
  for (auto& rank : ranks) rank.join();
  CHECK_SAME(outputs[0].x, outputs[1].x);
  for (size_t r = 0; r < kPrompt.size(); ++r) {
    for (size_t v = 0; v < kVocab; ++v) {
      const float got = v < 16 ? outputs[0].logits[r * 16 + v] : outputs[1].logits[r * 21 + v - 16];
      CHECK_NEAR(got, expected.logits[r * kVocab + v], 1e-4);
    }
  }
}

// Lost at any sync of the step: both ranks throw, nothing hangs, and the shard can take another
// step, whose bits are right.
void test_lost_rank(const std::vector<size_t>& on_disk) {
  for (int syncs = 0; syncs < 4; ++syncs) {
    const test::Case each("lost at sync ", syncs, ", layers on disk: ", on_disk.size());
    Meeting meeting;
    std::unique_ptr<Shard> shards[2] = {make(half(0), Type::q80, 3, on_disk),
                                        make(half(1), Type::q80, 2)};
    const std::vector<float> x = embed(*shards[0], kPrompt);
    std::thread ranks[2];
    std::string errors[2];
    for (size_t rank = 0; rank < 2; ++rank) {
      ranks[rank] = std::thread([&, rank] {
        MeetingLane lane(meeting, rank, rank == 1 ? syncs : 1 << 30);
        try {
          run(*shards[rank], x, {{kPrompt.size(), 0, kPages}}, kAllRows, &lane);
        } catch (const std::runtime_error& error) {
          errors[rank] = error.what();
        }
      });
    }
    for (auto& rank : ranks) rank.join();
    CHECK_EQUAL(errors[0], std::string("rank lost"));
    CHECK_EQUAL(errors[1], std::string("this rank gives up"));
    const Output again = run(*shards[0], x, {{kPrompt.size(), 0, kPages}}, kAllRows);
    const auto fresh = make(half(0), Type::q80, 1);
    CHECK_SAME(again.logits, run(*fresh, x, {{kPrompt.size(), 0, kPages}}, kAllRows).logits);
  }
}

// Parts add up to the whole wherever they are cut; gaps of zeros add nothing; one changed bit, and
// two words that changed places, show.
void test_sums_of_weights_on_disk() {
  std::mt19937 random(7);
  std::vector<uint8_t> bytes(20000);
  for (uint8_t& each : bytes) each = static_cast<uint8_t>(random());
  constexpr uint64_t kOffset = 4096 * 5 + 12;
  const uint64_t sum = disk_sum(kOffset, bytes);
  const std::span<const uint8_t> all(bytes);
  for (const size_t cut : {0, 4, 64, 4084, 4088, 8180, 19996, 20000}) {
    const test::Case each("cut at ", cut);
    CHECK_EQUAL(disk_sum(kOffset, all.first(cut)) + disk_sum(kOffset + cut, all.subspan(cut)), sum);
  }
  for (size_t bit = 0; bit < bytes.size() * 8; bit += 37) {
    std::vector<uint8_t> flipped = bytes;
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(disk_sum(kOffset, flipped) != sum);
  }
  std::swap_ranges(bytes.begin(), bytes.begin() + 4, bytes.begin() + 8192);
  CHECK(disk_sum(kOffset, bytes) != sum);
  CHECK_EQUAL(disk_sum(4096, std::vector<uint8_t>(8192)), uint64_t{0});
  CHECK_THROWS(disk_sum(2, bytes), std::logic_error, "does not end on a word");
}

// The same bits with any layers on disk, step after step.
void test_weights_on_disk() {
  ShardConfig config = whole();
  config.layers = {3, 8};
  config.kind_of_layer.assign(5, 0);
  for (const Type type : {Type::f32, Type::q40}) {
    const auto expected = make(config, type, 1);
    for (const std::vector<size_t>& on_disk : std::vector<std::vector<size_t>>{
             {3}, {7}, {4, 6}, {5, 4, 3}, {3, 4, 5, 6, 7}, {3, 3, 5}}) {
      const auto shard = make(config, type, 2, on_disk);
      CHECK_EQUAL(shard->weight_bytes(), expected->weight_bytes());
      // Two layers take turns in memory.
      const size_t layers = std::set<size_t>(on_disk.begin(), on_disk.end()).size();
      CHECK((shard->disk_bytes() > 0) == (layers > 2));
      const Output first = run_prompt(*expected), got = run_prompt(*shard);
      CHECK_SAME(got.logits, first.logits);
      for (uint32_t token = 1; token < 6; ++token) {
        const std::vector<Sequence> next = {{1, 8 + token, {3, 0, 7, 11}}};
        CHECK_SAME(run(*shard, embed(*shard, {token}), next, {0}).logits,
                   run(*expected, embed(*expected, {token}), next, {0}).logits);
      }
    }
  }
  const std::vector<size_t> other = {8};
  CHECK_THROWS(make(config, Type::f32, 1, other), std::invalid_argument, "layer 8 on disk");
  const DiskWeights nowhere = {{3}, "/no/such/folder"};
  CHECK_THROWS(Shard(config, 1, {}, "cpu", nowhere), DeviceError, "weights on disk: a new file");
}

void test_bad_steps() {
  const auto shard = make(whole(), Type::f32, 2);
  const std::vector<float> two = embed(*shard, {1, 2});
  const auto bad = [&](std::vector<float> x, std::vector<Sequence> sequences,
                       std::vector<uint32_t> output_rows, const char* part) {
    std::vector<float> logits((output_rows.size() + 1) * kVocab);
    CHECK_THROWS(step(*shard, x, sequences, output_rows, logits.data(), nullptr),
                 std::invalid_argument, part);
  };
  bad(two, {{3, 0, {0}}}, {}, "3 rows of 64");
  bad(two, {{1, 0, {0}}}, {}, "1 rows of 64");
  bad({}, {}, {}, "0 numbers");
  bad(two, {{0, 0, {0}}}, {}, "0 rows");
  bad(two, {{2, 3, {0}}}, {}, "positions up to 5 do not fit 1 pages of 4");
  bad(two, {{2, 0, {}}}, {}, "0 pages");
  bad(two, {{2, ~size_t{0}, {0}}}, {}, "do not fit");
  bad(two, {{~size_t{0}, 0, {0}}}, {}, "rows");
  bad(two, {{2, 0, {16}}}, {}, "page 16");
  bad(two, {{1, 0, {3}}, {1, 0, {3}}}, {}, "page 3 would be written twice");
  bad(std::vector<float>(5 * kHidden), {{5, 0, {6, 6}}}, {}, "page 6 would be written twice");
  CHECK_EQUAL(shard->kv_pages(), size_t{0});
  bad(two, {{2, 0, {0}}}, {2}, "output row 2");
  bad(two, {{2, 0, {0}}}, {1, 1}, "must ascend");  // more rows than the workspace has
  bad(two, {{2, 0, {0}}}, {1, 0}, "must ascend");
  CHECK_EQUAL(shard->kv_pages(), size_t{0});  // what is refused takes no memory
  bad(std::vector<float>(13 * kHidden), {{12, 0, {0, 1, 2}}, {1, 0, {3}}}, {}, "more than 12");
  std::vector<float> x(kHidden);
  const std::vector<uint32_t> token = {kVocab};
  CHECK_THROWS(shard->embed(token, {}, x.data()), std::invalid_argument,
               "token 37 of a vocabulary of 37");
  // After all that, a step is still right.
  CHECK_SAME(run_prompt(*shard).logits, run_prompt(*make(whole(), Type::f32, 1)).logits);

  ShardConfig config = whole();
  config.vocab = {0, 0};
  const auto headless = make(config, Type::f32, 1);
  std::vector<float> copy = two;
  const std::vector<uint32_t> row = {0};
  CHECK_THROWS(step(*headless, copy, {{2, 0, {0}}}, row, nullptr, nullptr), std::invalid_argument,
               "no output head");
  CHECK_SAME(run(*headless, two, {{2, 0, {0}}}, {}).x, run(*shard, two, {{2, 0, {0}}}, {}).x);
  const auto without = make(half(1), Type::f32, 1);
  CHECK_THROWS(without->embed(row, {}, x.data()), std::logic_error, "no embedding");
}

void test_bad_slices() {
  Shard shard(whole(), 1);
  const auto load = [&](const std::string& name, Type type, size_t bytes) {
    shard.load(name, type, std::vector<uint8_t>(bytes));
  };
  CHECK_EQUAL(shard.missing().size(), shard.expected().size());
  CHECK_THROWS(load("layers.2.wq", Type::f32, 4), std::invalid_argument, "no slice 'layers.2.wq'");
  CHECK_THROWS(load("", Type::f32, 4), std::invalid_argument, "no slice");
  CHECK_THROWS(load("layers.0.wq", Type::f32, 256 * 64 * 4 - 1), std::invalid_argument, "65535");
  CHECK_THROWS(load("layers.0.wq", Type::q40, 0), std::invalid_argument, "layers.0.wq");
  CHECK_THROWS(load("norm", Type::f16, 128), std::invalid_argument, "f32");
  CHECK_THROWS(load("norm", Type::f32, 252), std::invalid_argument, "252");
  CHECK_EQUAL(shard.weight_bytes(), size_t{0});
  load("layers.0.wq", Type::q40, 256 * 36);
  CHECK_THROWS(load("layers.0.wq", Type::q40, 256 * 36), std::invalid_argument, "twice");
  CHECK_EQUAL(shard.missing().size(), shard.expected().size() - 1);
  std::vector<float> x(kHidden);
  CHECK_THROWS(step(shard, x, {{1, 0, {0}}}, {}, nullptr, nullptr), std::logic_error, "lacks");
  ShardConfig config = whole();
  config.hidden_size = 33;  // no whole number of blocks
  Shard odd(config, 1);
  CHECK_THROWS(odd.load("layers.0.wq", Type::q80, {}), std::invalid_argument, "33 columns");
}

// Rows in their turn make the same shard as all at once, also after a new beginning.
void test_loading_by_rows() {
  for (Type type : {Type::f32, Type::q40}) {
    Shard shard(whole(), 2);
    for (const auto& each : shard.expected()) {
      const auto& name = each.first;
      const auto& shape = each.second;
      const Type used = type_of(name, type);
      const std::vector<uint8_t> data = slice(whole(), name, used);
      const size_t rows = shape.first, stride = data.size() / rows;
      const auto load = [&](size_t first, size_t count) {
        shard.load(name, used, std::span(data).subspan(first * stride, count * stride), first);
      };
      const size_t missing = shard.missing().size(), held = shard.weight_bytes();
      if (rows > 8) {
        load(0, 8);
        load(0, 8);
        CHECK_THROWS(load(16, 8), std::invalid_argument, "row 16 came where row 8 was next");
        CHECK_THROWS(load(8, 7), std::invalid_argument, "groups of 8");
        if (type == Type::q40) {
          CHECK_THROWS(shard.load(name, Type::q80, slice(whole(), name, Type::q80)),
                       std::invalid_argument, "began as q4_0");
        }
        CHECK_EQUAL(shard.missing().size(), missing);
        CHECK_EQUAL(shard.weight_bytes(), held);
        for (size_t first = 8; first < rows; first += 16)
          load(first, std::min(rows - first, size_t{16}));
      } else {
        load(0, rows);
      }
      CHECK_EQUAL(shard.missing().size(), missing - 1);
      CHECK_THROWS(load(0, rows), std::invalid_argument, "twice");
    }
    const auto same = make(whole(), type, 1);
    CHECK_EQUAL(shard.weight_bytes(), same->weight_bytes());
    CHECK_SAME(run_prompt(shard).logits, run_prompt(*same).logits);
  }
}

void test_bad_configs() {
  const auto bad = [](auto change, const char* part) {
    ShardConfig config = whole();
    change(config);
    CHECK_THROWS(Shard(config, 1), std::invalid_argument, part);
  };
  bad([](auto& c) { c.hidden_size = 0; }, "hidden_size is 0");
  bad([](auto& c) { c.hidden_size = ~size_t{0}; }, "hidden_size");
  bad([](auto& c) { c.layers = {2, 2}; }, "layers");
  bad([](auto& c) { c.layers = {3, 2}; }, "layers [3, 2)");
  bad([](auto& c) { c.layers = {0, ~size_t{0}}; }, "layers");
  bad([](auto& c) { c.kind_of_layer = {0}; }, "kinds for 1 of 2 layers");
  bad([](auto& c) { c.kind_of_layer = {0, 1}; }, "kind 1 of 1");
  bad([](auto& c) { c.kinds.clear(); }, "kinds of blocks is 0");
  const auto bad_attention = [&](auto change, const char* part) {
    bad([&](auto& c) { change(test::attention_of(c.kinds[0])); }, part);
  };
  bad_attention([](auto& a) { a.heads = {0, 7}; }, "7 query heads cannot share 2 KV heads");
  bad_attention([](auto& a) { a.kv_heads = {0, 0}; }, "kv_heads");
  bad_attention([](auto& a) { a.key_size = 30; }, "at most 15 rope frequencies, not 16");
  bad_attention([](auto& a) { a.value_size = 0; }, "value_size is 0");
  bad_attention([](auto& a) { a.scale = 0.0f; }, "scale of attention");
  bad_attention([](auto& a) { a.softcap = -1.0f; }, "soft cap");
  bad_attention([](auto& a) { a.rope = 1; }, "rope 1 of 1");
  bad_attention([](auto& a) { a.row_norm = {.heads = 4, .kv_heads = 2}; },
                "heads [0, 8) is not a range within 4");
  bad_attention([](auto& a) { a.row_norm = {.heads = 9, .kv_heads = 2}; }, "9 query heads");
  bad_attention([](auto& a) { a.row_norm = {.heads = 8, .kv_heads = 0}; },
                "KV heads of a row norm");
  bad_attention([](auto& a) { a.temperature = {.slope = 1.0f, .length = 0.0f}; }, "length");
  const auto bad_latent = [&](auto change, const char* part) {
    bad(
        [&](auto& c) {
          LatentAttentionConfig latent = {.heads = {0, 4},
                                          .kv_rank = 32,
                                          .nope_size = 8,
                                          .rope_size = 32,
                                          .value_size = 8,
                                          .scale = 1.0f,
                                          .rope = 0};
          change(latent);
          c.kinds[0].mixer = latent;
        },
        part);
  };
  bad_latent([](auto& a) { a.heads = {}; }, "heads");
  bad_latent([](auto& a) { a.kv_rank = 0; }, "kv_rank is 0");
  bad_latent([](auto& a) { a.kv_rank = 4090; }, "kv_rank with rope_size is 4122");
  bad_latent([](auto& a) { a.kv_rank = ~size_t{0}; }, "kv_rank");
  bad_latent([](auto& a) { a.nope_size = 0; }, "nope_size is 0");
  bad_latent([](auto& a) { a.value_size = 5000; }, "value_size is 5000");
  bad_latent([](auto& a) { a.query_rank = size_t{1} << 40; }, "query_rank");
  bad_latent([](auto& a) { a.rope_size = 30; }, "at most 15 rope frequencies, not 16");
  bad_latent([](auto& a) { a.norm_epsilon = std::nanf(""); }, "epsilon of latent attention");
  bad_latent([](auto& a) { a.rope = 3; }, "rope 3 of 1");
  bad_latent([](auto& a) { a.scale = 0.0f; }, "scale of attention");
  bad([](auto& c) { c.kinds[0].feed_forward.clamp = GateClamp{.limit = 0.0f}; }, "the limit");
  bad([](auto& c) { c.kinds[0].feed_forward.clamp = GateClamp{.limit = 1.0f, .factor = 0.0f}; },
      "factor");
  bad(
      [](auto& c) {
        c.kinds[0].feed_forward.clamp = GateClamp{.limit = 1.0f};
        c.kinds[0].feed_forward.gated = false;
      },
      "not gated");
  bad([](auto& c) { c.ropes[0].frequencies[3] = std::nanf(""); }, "not finite");
  bad([](auto& c) { c.ropes[0].magnitude = 0.0f; }, "magnitude");
  bad([](auto& c) { c.kinds[0].feed_forward.units = {0, size_t{1} << 40}; }, "feed-forward units");
  bad([](auto& c) { c.kinds[0].residual_scale = std::nanf(""); }, "residual scale");
  bad([](auto& c) { c.logit_softcap = -1.0f; }, "logit_softcap");
  bad([](auto& c) { c.embedding_scale = 0.0f; }, "embedding_scale");
  bad([](auto& c) { c.vocab = {0, kVocab + 1}; }, "vocab [0, 38)");
  bad([](auto& c) { c.page_size = 0; }, "page_size");
  bad([](auto& c) { c.max_pages = size_t{1} << 40; }, "max_pages");
  bad([](auto& c) { c.max_step_tokens = 0; }, "max_step_tokens");
  bad([](auto& c) { c.norm.epsilon = std::nanf(""); }, "norm_epsilon");
  bad(
      [](auto& c) {
        c.kv_type = KvType::q80;
        test::attention_of(c.kinds[0]).value_size = 16;
      },
      "multiple of 32, not 16");
  bad([](auto& c) { c.head_from_embedding = true, c.embedding = false; }, "embedding");
  CHECK_THROWS(Shard(whole(), 0), std::invalid_argument, "threads");
}

// Slices may come from several threads at once, and somebody may ask meanwhile how far it is.
void test_parallel_loading() {
  Shard shard(whole(), 1);
  std::vector<std::string> names = shard.missing();
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < names.size(); i = next++) {
        const Type type = type_of(names[i], Type::q40);
        shard.load(names[i], type, slice(whole(), names[i], type));
      }
    });
  }
  while (!shard.missing().empty()) std::this_thread::yield();
  for (auto& thread : threads) thread.join();
  const auto expected = make(whole(), Type::q40, 1);
  CHECK_EQUAL(shard.weight_bytes(), expected->weight_bytes());
  CHECK_SAME(run_prompt(shard).logits, run_prompt(*expected).logits);
}

// A second step while one is under way is refused, not run into the first one's workspace.
void test_one_step_at_a_time() {
  class Asking : public Lane {
   public:
    explicit Asking(Shard& shard) : shard_(shard) {}
    void all_reduce(float*, size_t, size_t, bool) override {
      std::vector<float> x(kHidden);
      CHECK_THROWS(step(shard_, x, {{1, 0, {5}}}, {}, nullptr, nullptr), std::logic_error,
                   "another step");
    }

   private:
    Shard& shard_;
  };
  const auto shard = make(whole(), Type::f32, 2);
  Asking lane(*shard);
  const Output expected = run_prompt(*shard);
  CHECK_SAME(run_prompt(*shard, &lane).logits, expected.logits);
}

void test_kv_memory() {
  const auto shard = make(whole(), Type::f32, 1);
  CHECK_EQUAL(shard->kv_pages(), size_t{0});
  run_prompt(*shard);
  CHECK_EQUAL(shard->kv_pages(), size_t{3});
  run(*shard, embed(*shard, {4}), {{1, 9, kPages}}, {});
  CHECK_EQUAL(shard->kv_pages(), size_t{3});
}

}  // namespace

int main() {
  test_invariance();
  test_instruction_sets_agree();
  test_tied_head();
  test_two_ranks();
  test_lost_rank({});
  test_lost_rank({0});
  test_lost_rank({0, 1});
  test_sums_of_weights_on_disk();
  test_weights_on_disk();
  test_bad_steps();
  test_bad_slices();
  test_loading_by_rows();
  test_bad_configs();
  test_parallel_loading();
  test_one_step_at_a_time();
  test_kv_memory();
  return test::finish();
}
