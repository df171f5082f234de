// The compiled forward pass: where its barriers are, and which buffers share memory.
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "configs.h"
#include "hearth/quant.h"
#include "layers/program.h"
#include "shard/weights.h"
#include "shard/workspace.h"

using namespace hearth;

namespace {

ShardConfig config_of(size_t hidden, size_t layers, size_t heads, size_t kv_heads, size_t head_size,
                      size_t ffn, size_t vocab) {
  ShardConfig config = test::block_config({.hidden_size = hidden,
                                           .layers = {0, layers},
                                           .heads = {0, heads},
                                           .kv_heads = {0, kv_heads},
                                           .head_size = head_size,
                                           .units = {0, ffn}});
  config.max_step_tokens = 64;
  config.vocab = {0, vocab};
  config.vocab_size = vocab;
  config.validate();
  return config;
}

std::unique_ptr<Weights> weights_of(const ShardConfig& config, Type type) {
  auto weights = std::make_unique<Weights>(config);
  ThreadPool pool(1);
  std::vector<std::pair<std::string, SliceShape>> shapes;
  for (const auto& [name, slot] : weights->slots())
    shapes.push_back({name, {slot.rows, slot.columns}});
  for (const auto& [name, shape] : shapes) {
    const Type used = name.ends_with("norm") ? Type::f32 : type;
    weights->load(name, used, std::vector<uint8_t>(shape.first * row_bytes(used, shape.second)), 0,
                  pool);
  }
  CHECK(weights->complete());
  return weights;
}

Access access_of(const Program::Instruction& instruction) {
  return std::visit([](const auto& each) { return each.access(); }, instruction.operation);
}

size_t barriers(const Program& program) {
  size_t count = 0;
  for (const auto& instruction : program.instructions()) {
    count += instruction.barrier_before;
    count += std::holds_alternative<AllReduce>(instruction.operation);
  }
  return count;
}

// Eight barriers a block, without a lane; two more for the logits. One more a block where heads are
// not whole blocks of a quantized input.
void test_barriers() {
  for (size_t layers : {1, 2, 5}) {
    const auto whole = config_of(64, layers, 4, 2, 32, 96, 40);
    CHECK_EQUAL(barriers(weights_of(whole, Type::q40)->compile(whole)), 8 * layers + 2);
    const auto straddling = config_of(64, layers, 4, 2, 16, 96, 40);
    CHECK_EQUAL(barriers(weights_of(straddling, Type::f32)->compile(straddling)), 8 * layers + 2);
    CHECK_EQUAL(barriers(weights_of(straddling, Type::q40)->compile(straddling)), 9 * layers + 2);
    ShardConfig headless = whole;
    headless.vocab = {0, 0};
    CHECK_EQUAL(barriers(weights_of(headless, Type::q40)->compile(headless)), 8 * layers);
  }
}

// Latent attention, with latent queries in the second kind of block; and attention whose norms are
// of whole rows, and whose buffers all are other buffers.
ShardConfig mixed_config() {
  ShardConfig config = config_of(64, 3, 4, 2, 32, 96, 40);
  LatentAttentionConfig latent = {.heads = {0, 4},
                                  .kv_rank = 64,
                                  .nope_size = 32,
                                  .rope_size = 32,
                                  .value_size = 32,
                                  .scale = 0.1f,
                                  .rope = 0};
  config.kinds.resize(3, config.kinds[0]);
  config.kinds[0].mixer = latent;
  latent.query_rank = 32;
  config.kinds[1].mixer = latent;
  test::attention_of(config.kinds[2]).row_norm = {.heads = 4, .kv_heads = 2};
  config.kind_of_layer = {0, 1, 2};
  config.validate();
  return config;
}

// Within a phase, no operation touches what another one writes, but rows of the same thread; and no
// two of its buffers share memory.
void test_phases() {
  for (Type type : {Type::f32, Type::q40}) {
    for (const auto& config :
         {config_of(64, 3, 4, 2, 16, 96, 40), config_of(64, 3, 4, 2, 32, 96, 40), mixed_config()}) {
      const auto weights = weights_of(config, type);
      const Program program = weights->compile(config);
      const PerBuffer<BufferPlan> plan = program.plan_buffers();
      const auto& instructions = program.instructions();
      for (const auto& a : instructions) {
        for (const auto& b : instructions) {
          if (&a == &b || a.phase != b.phase) continue;
          const Access first = access_of(a), second = access_of(b);
          const bool by_row = first.division == Division::rows && second.division == Division::rows;
          CHECK(by_row || !first.writes.intersects(second.reads | second.writes));
          CHECK(first.division != Division::stealing || second.division != Division::stealing);
          for (size_t i = 0; i < kBuffers; ++i) {
            const auto id = static_cast<BufferId>(i);
            if (!(first.reads | first.writes).contains(id)) continue;
            for (size_t j = 0; j < kBuffers; ++j) {
              const auto other = static_cast<BufferId>(j);
              if ((second.reads | second.writes).contains(other))
                CHECK(plan[id].apart_from.contains(other));
            }
          }
        }
      }
    }
  }
}

struct Bytes {
  const uint8_t *begin, *end;
};

std::vector<Bytes> pieces(const Activations& buffer, size_t rows) {
  const auto piece = [](const void* at, size_t bytes) {
    const auto* begin = static_cast<const uint8_t*>(at);
    return Bytes{begin, begin + bytes};
  };
  const size_t count = rows * buffer.columns;
  std::vector<Bytes> all = {piece(buffer.x, count * sizeof(float))};
  if (buffer.q != nullptr) {
    all.push_back(piece(buffer.q, count));
    all.push_back(piece(buffer.scales, count / kBlock * sizeof(float)));
    all.push_back(piece(buffer.sums, count / kBlock * sizeof(int32_t)));
  }
  return all;
}

// Buffers to be kept apart do not overlap, pieces of one buffer neither, all are on cache lines;
// and the workspace is no larger than services/worker/shard.py estimates.
void test_workspace() {
  for (Type type : {Type::f32, Type::q80}) {
    for (const auto& config :
         {config_of(64, 2, 4, 2, 32, 96, 40), config_of(64, 1, 8, 8, 32, 96, 40),
          config_of(96, 1, 1, 1, 32, 512, 8), config_of(256, 1, 2, 1, 32, 32, 8),
          config_of(64, 2, 6, 2, 16, 64, 40)}) {
      const auto weights = weights_of(config, type);
      const PerBuffer<BufferPlan> plan = weights->compile(config).plan_buffers();
      Workspace workspace;
      for (size_t rows : {1, 7, 64, 3}) {
        constexpr size_t kScratch = 100, kThreads = 3;
        const test::Case each(type_name(type), ", ", config.hidden_size, " wide, ", rows, " rows");
        workspace.resize(plan, rows, kScratch, kThreads);
        const auto rows_of = [&](BufferId id) { return id == BufferId::scratch ? kThreads : rows; };
        for (size_t i = 0; i < kBuffers; ++i) {
          const auto id = static_cast<BufferId>(i);
          const Activations& buffer = workspace[id];
          if (buffer.x == nullptr) continue;
          CHECK_EQUAL(buffer.q != nullptr, plan[id].quantized);
          for (size_t j = 0; j <= i; ++j) {
            const auto other = static_cast<BufferId>(j);
            if (workspace[other].x == nullptr || !plan[id].apart_from.contains(other)) continue;
            const auto own = pieces(buffer, rows_of(id));
            const auto theirs = pieces(workspace[other], rows_of(other));
            for (size_t a = 0; a < own.size(); ++a) {
              CHECK_EQUAL(reinterpret_cast<uintptr_t>(own[a].begin) % 64, uintptr_t{0});
              for (size_t b = 0; b < theirs.size(); ++b) {
                if (i == j && a == b) continue;
                CHECK(own[a].end <= theirs[b].begin || theirs[b].end <= own[a].begin);
              }
            }
          }
        }
        const AttentionShape shape = attention_shape(test::attention_of(config.kinds[0]));
        const size_t q = shape.heads * shape.key_size, kv = shape.kv_heads * shape.key_size;
        const size_t hidden = config.hidden_size;
        const size_t ffn = config.kinds[0].feed_forward.units.size();
        const size_t quantized = std::max(hidden, q) + ffn;
        const size_t floats = 2 * (hidden + std::max(q + kv, ffn)) + shape.key_size;
        const size_t rounding = 4 * kBuffers * 64, scratch = kThreads * (kScratch * 4 + 64);
        CHECK(workspace.size_bytes() <=
              rows * (4 * floats + quantized + quantized / 4) + rounding + scratch);
      }
    }
  }
}

}  // namespace

int main() {
  test_barriers();
  test_phases();
  test_workspace();
  return test::finish();
}
