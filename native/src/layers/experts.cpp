#include "layers/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hearth/finite.h"
#include "layers/feed_forward.h"
#include "layers/products.h"
#include "shard/pass.h"

namespace hearth {
namespace {

// Up to so many rows are routed by one thread: that is faster than another barrier.
constexpr size_t kRoutedByOne = 4;

constexpr float kNever = -std::numeric_limits<float>::infinity();

// e^x with the same bits on every machine: ranks must choose the same experts. The polynomial of
// the Cephes library, for finite x up to about 88.
float same_exp(float x) {
  x = std::max(-87.3f, std::min(88.0f, x));
  const float n = std::nearbyint(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return std::ldexp(p, static_cast<int>(n));
}

// Scores instead of the router's products.
void score(RouterScores scores, float* x, size_t count) {
  if (scores == RouterScores::sigmoid) {
    for (size_t e = 0; e < count; ++e) x[e] = 1.0f / (1.0f + same_exp(-x[e]));
    return;
  }
  const float largest = *std::max_element(x, x + count);
  float sum = 0.0f;
  for (size_t e = 0; e < count; ++e) {
    x[e] = same_exp(x[e] - largest);
    sum += x[e];
  }
  for (size_t e = 0; e < count; ++e) x[e] /= sum;
}

// The expert of the highest rank in [begin, end); the first of equal ones.
size_t best_of(const float* ranks, size_t begin, size_t end) {
  size_t best = begin;
  for (size_t e = begin + 1; e < end; ++e) {
    if (ranks[e] > ranks[best]) best = e;
  }
  return best;
}

// The sum of the two best of a group.
float rank_of_group(const float* ranks, size_t begin, size_t end) {
  float first = kNever, second = kNever;
  for (size_t e = begin; e < end; ++e) {
    if (ranks[e] > first) {
      second = first;
      first = ranks[e];
    } else if (ranks[e] > second) {
      second = ranks[e];
    }
  }
  return end - begin > 1 ? first + second : first;
}

// Ranks of experts outside the best groups become -inf.
void keep_best_groups(const ExpertsConfig& config, float* ranks) {
  const size_t size = config.count / config.groups;
  for (size_t left = config.groups; left > config.used_groups; --left) {
    size_t worst = config.groups;
    float lowest = std::numeric_limits<float>::infinity();
    for (size_t g = 0; g < config.groups; ++g) {
      const float rank = rank_of_group(ranks, g * size, (g + 1) * size);
      // The last of equal ones goes first. A group that is out already has -inf.
      if (rank > kNever && rank <= lowest) {
        lowest = rank;
        worst = g;
      }
    }
    if (worst == config.groups) return;
    std::fill(ranks + worst * size, ranks + (worst + 1) * size, kNever);
  }
}

// Any experts, with weights of NaN: the row's output is NaN, which the next sync notices. The
// finite ranks alone would choose other experts, and so write another text.
void choose_none(const ExpertsConfig& config, float* experts, float* weights) {
  for (size_t k = 0; k < config.used; ++k) {
    experts[k] = static_cast<float>(k);
    weights[k] = std::numeric_limits<float>::quiet_NaN();
  }
}

// x: the router's products of one row; it holds scores afterwards. ranks: scratch of the same size.
void choose(const ExpertsConfig& config, const std::vector<float>* bias,
            const std::vector<float>* scales, float* x, float* ranks, float* experts,
            float* weights) {
  if (!all_finite(x, config.count)) return choose_none(config, experts, weights);
  score(config.scores, x, config.count);
  for (size_t e = 0; e < config.count; ++e) ranks[e] = bias == nullptr ? x[e] : x[e] + (*bias)[e];
  if (!all_finite(ranks, config.count)) return choose_none(config, experts, weights);
  if (config.used_groups < config.groups) keep_best_groups(config, ranks);
  float sum = 0.0f;
  for (size_t k = 0; k < config.used; ++k) {
    const size_t best = best_of(ranks, 0, config.count);
    ranks[best] = kNever;
    experts[k] = static_cast<float>(best);
    weights[k] = x[best];
    sum += weights[k];
  }
  for (size_t k = 0; k < config.used; ++k) {
    if (config.normalize) weights[k] /= sum;
    weights[k] *= config.scale;
    if (scales != nullptr) weights[k] *= (*scales)[static_cast<size_t>(experts[k])];
  }
}

// Orders the pairs of row and expert expert by expert. choices: of `rows` rows, see Route.
void group_by_expert(const Activations& choices, size_t rows, size_t count, size_t used,
                     ExpertRows& groups) {
  const auto expert = [&](size_t r, size_t k) { return static_cast<size_t>(choices.row(r)[k]); };
  groups.offsets.resize(count + 1);
  std::fill(groups.offsets.begin(), groups.offsets.end(), 0);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t k = 0; k < used; ++k) ++groups.offsets[expert(r, k) + 1];
  }
  for (size_t e = 0; e < count; ++e) groups.offsets[e + 1] += groups.offsets[e];
  // Places of the pairs, row by row: offsets[e] moves to the end of e's, and then back.
  for (size_t r = 0; r < rows; ++r) {
    for (size_t k = 0; k < used; ++k) {
      const uint32_t place = groups.offsets[expert(r, k)]++;
      groups.rows[place] = static_cast<uint32_t>(r);
      groups.pairs[r * used + k] = place;
    }
  }
  for (size_t e = count; e > 0; --e) groups.offsets[e] = groups.offsets[e - 1];
  groups.offsets[0] = 0;
}

// Calls visit(expert, first group, last group) for groups [begin, end) of all pairs' experts, of
// `groups` each.
template <typename Visit>
void visit_expert_groups(const ExpertRows& rows, size_t groups, size_t begin, size_t end,
                         Visit visit) {
  size_t at = 0;  // groups of the experts before this one
  for (size_t e = 0; e + 1 < rows.offsets.size() && at < end; ++e) {
    if (rows.count(e) == 0) continue;
    const size_t first = std::max(begin, at), last = std::min(end, at + groups);
    if (first < last) visit(e, first - at, last - at);
    at += groups;
  }
}

size_t chosen_experts(const ExpertRows& rows) {
  size_t count = 0;
  for (size_t e = 0; e + 1 < rows.offsets.size(); ++e) count += rows.count(e) > 0;
  return count;
}

}  // namespace

void Experts::add_slots(const ExpertsConfig& config, size_t hidden, const std::string& prefix,
                        Slots& slots) {
  const FeedForwardConfig& expert = config.expert;
  const size_t units = expert.units.size();
  for (std::vector<Matrix>* each : {&gate, &up, &down}) each->resize(config.count);
  // The host may choose in a GPU's place, see vulkan/recorder.cpp.
  slots.add(prefix + "router", config.count, hidden, router, Home::host);
  if (config.router_bias) slots.add(prefix + "router_bias", config.count, router_bias);
  if (config.choice_bias) slots.add(prefix + "choice_bias", config.count, choice_bias);
  if (config.expert_scales) slots.add(prefix + "expert_scales", config.count, scales);
  slots.add(prefix + "experts_w1", units, hidden, gate);
  if (expert.gated) slots.add(prefix + "experts_w3", units, hidden, up);
  slots.add(prefix + "experts_w2", hidden, units, down);
  if (expert.bias) slots.add(prefix + "experts_b1", config.count * units, gate_bias);
  if (expert.bias && expert.gated) slots.add(prefix + "experts_b3", config.count * units, up_bias);
  if (expert.output_bias) slots.add(prefix + "experts_b2", config.count * hidden, down_bias);
}

bool Experts::quantized() const {
  return is_quantized(router.type()) || is_quantized(gate.front().type()) ||
         (!up.front().empty() && is_quantized(up.front().type()));
}

bool Experts::reads_floats() const {
  return !is_quantized(gate.front().type()) ||
         (!up.front().empty() && !is_quantized(up.front().type()));
}

void Experts::compile_router(const ExpertsConfig& config, Program& program) const {
  program.size_buffer(BufferId::router, config.count);
  program.size_buffer(BufferId::choices, 2 * config.used + config.count);
  program.add(Products{.input = BufferId::normed,
                       .products = {{&router, BufferId::router, config.count,
                                     config.router_bias ? &router_bias : nullptr}}});
  program.add(Route{.config = config,
                    .choice_bias = config.choice_bias ? &choice_bias : nullptr,
                    .scales = config.expert_scales ? &scales : nullptr});
}

void Experts::compile(const ExpertsConfig& config, Combine combine, Program& program) const {
  const size_t units = config.expert.units.size(), used = config.used, hidden = combine.hidden;
  const bool quantize_gate = is_quantized(down.front().type());
  program.size_buffer(BufferId::expert_input, used * hidden, quantized());
  program.size_buffer(BufferId::expert_gate, used * units, quantize_gate);
  if (config.expert.gated) program.size_buffer(BufferId::expert_up, used * units);
  program.size_buffer(BufferId::expert_output, used * hidden);
  program.add(ExpertProducts{.experts = this,
                             .config = config.expert,
                             .used = used,
                             .copy_floats = reads_floats(),
                             .copy_quantized = quantized(),
                             .quantize = quantize_gate});
  program.add(ExpertOutputs{.experts = this, .used = used});
  combine.bias = config.expert.output_bias ? &down_bias : nullptr;
  combine.used = used;
  program.add(combine);
}

Access Route::access() const {
  return {.reads = {BufferId::router},
          .writes = {BufferId::router, BufferId::choices},
          .division = Division::other};
}

void Route::run(Pass& pass, size_t thread) const {
  const size_t rows = pass.batch.rows().size();
  const Activations router = pass.buffers[BufferId::router].of_width(config.count);
  const Activations choices =
      pass.buffers[BufferId::choices].of_width(2 * config.used + config.count);
  const auto choose_rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      float* experts = choices.row(r);
      float* weights = experts + config.used;
      choose(config, choice_bias, scales, router.row(r), weights + config.used, experts, weights);
    }
  };
  if (rows > kRoutedByOne) {
    const auto [begin, end] = pass.rows_of(thread);
    choose_rows(begin, end);
    pass.pool.barrier();
  } else if (thread == 0) {
    choose_rows(0, rows);
  }
  if (thread == 0) group_by_expert(choices, rows, config.count, config.used, pass.expert_rows);
}

Access ExpertProducts::access() const {
  BufferSet writes = {BufferId::expert_input, BufferId::expert_gate, BufferId::scratch};
  if (config.gated) writes = writes | BufferSet{BufferId::expert_up};
  return {.reads = {BufferId::normed, BufferId::choices},
          .writes = writes,
          .division = Division::stealing};
}

// expert_input = the rows of experts with more than one.
void ExpertProducts::gather(Pass& pass, size_t thread) const {
  const ExpertRows& pairs = pass.expert_rows;
  const Activations& normed = pass.buffers[BufferId::normed];
  const size_t columns = normed.columns, blocks = columns / kBlock;
  const Activations input = pass.buffers[BufferId::expert_input].of_width(columns);
  const auto [begin, end] = pass.part(pairs.offsets.back(), thread);
  for (size_t e = 0; e + 1 < pairs.offsets.size(); ++e) {
    if (pairs.count(e) <= 1) continue;
    const size_t last = std::min<size_t>(end, pairs.offsets[e + 1]);
    for (size_t pair = std::max<size_t>(begin, pairs.offsets[e]); pair < last; ++pair) {
      const size_t r = pairs.rows[pair];
      if (copy_floats) std::copy_n(normed.row(r), columns, input.row(pair));
      if (!copy_quantized) continue;
      std::copy_n(normed.q + r * columns, columns, input.q + pair * columns);
      std::copy_n(normed.scales + r * blocks, blocks, input.scales + pair * blocks);
      std::copy_n(normed.sums + r * blocks, blocks, input.sums + pair * blocks);
    }
  }
}

void ExpertProducts::run(Pass& pass, size_t thread) const {
  const ExpertRows& pairs = pass.expert_rows;
  const size_t units = config.units.size(), hidden = pass.buffers[BufferId::normed].columns;
  const size_t groups = (units + kGroupRows - 1) / kGroupRows;
  const size_t total = groups * chosen_experts(pairs);
  const size_t unit = std::max(kBlock / kGroupRows, unit_groups(pass.batch.rows().size()));
  void* scratch = pass.buffers[BufferId::scratch].row(thread);
  if (pass.batch.rows().size() > 1) {  // else every expert has one
    gather(pass, thread);
    pass.pool.barrier();
  }
  const auto work = [&](size_t e, size_t begin, size_t end) {
    const size_t first_pair = pairs.offsets[e], count = pairs.count(e);
    const Activations input =
        count == 1 ? pass.buffers[BufferId::normed].from_row(pairs.rows[first_pair], hidden)
                   : pass.buffers[BufferId::expert_input].from_row(first_pair, hidden);
    const Activations gated = pass.buffers[BufferId::expert_gate].from_row(first_pair, units);
    const size_t first = begin * kGroupRows, last = std::min(end * kGroupRows, units);
    const auto multiply = [&](const Matrix& matrix, const std::vector<float>& bias, float* y) {
      multiply_groups(pass.kernels, input, count, matrix, units, begin, end, y, scratch);
      if (!config.bias) return;
      for (size_t r = 0; r < count; ++r) {
        for (size_t c = first; c < last; ++c) y[r * units + c] += bias[e * units + c];
      }
    };
    float* ups = nullptr;
    multiply(experts->gate[e], experts->gate_bias, gated.x);
    if (config.gated) {
      ups = pass.buffers[BufferId::expert_up].x + first_pair * units;
      multiply(experts->up[e], experts->up_bias, ups);
    }
    for (size_t r = 0; r < count; ++r) {
      float* factors = ups == nullptr ? nullptr : ups + r * units + first;
      activate(pass.kernels, config.activation, config.clamp, gated.row(r) + first, factors,
               last - first);
      if (quantize) quantize_columns(pass.kernels, gated, r, first, last);
    }
  };
  pass.queue.begin_phase(thread);
  while (true) {
    const auto [begin, end] = pass.queue.take(thread, total, unit);
    if (begin == end) return;
    visit_expert_groups(pairs, groups, begin, end, work);
  }
}

Access ExpertOutputs::access() const {
  return {.reads = {BufferId::expert_gate, BufferId::choices},
          .writes = {BufferId::expert_output, BufferId::scratch},
          .division = Division::stealing};
}

void ExpertOutputs::run(Pass& pass, size_t thread) const {
  const ExpertRows& pairs = pass.expert_rows;
  const size_t units = experts->down.front().columns(), hidden = experts->down.front().rows();
  const size_t groups = (hidden + kGroupRows - 1) / kGroupRows;
  const size_t total = groups * chosen_experts(pairs);
  void* scratch = pass.buffers[BufferId::scratch].row(thread);
  const auto work = [&](size_t e, size_t begin, size_t end) {
    const size_t first_pair = pairs.offsets[e], count = pairs.count(e);
    const Activations input = pass.buffers[BufferId::expert_gate].from_row(first_pair, units);
    float* y = pass.buffers[BufferId::expert_output].x + first_pair * hidden;
    multiply_groups(pass.kernels, input, count, experts->down[e], hidden, begin, end, y, scratch);
  };
  pass.queue.begin_phase(thread);
  while (true) {
    const auto [begin, end] = pass.queue.take(thread, total, unit_groups(pass.batch.rows().size()));
    if (begin == end) return;
    visit_expert_groups(pairs, groups, begin, end, work);
  }
}

Access Combine::access() const {
  Access access = {.reads = {BufferId::expert_output, BufferId::choices},
                   .writes = {separate ? BufferId::two_results : BufferId::partial},
                   .division = Division::rows};
  // The first half of the same buffer is the feed-forward's.
  if (separate) access.reads = access.reads | BufferSet{BufferId::two_results};
  if (feed_forward) access.reads = access.reads | BufferSet{BufferId::partial};
  if (gate) access.reads = access.reads | BufferSet{BufferId::ffn_gate};
  return access;
}

void Combine::run(Pass& pass, size_t thread) const {
  const size_t columns = hidden;
  const Activations results = separate ? pass.buffers[BufferId::two_results].of_width(2 * columns)
                                       : pass.buffers[BufferId::partial].of_width(columns);
  const Activations outputs = pass.buffers[BufferId::expert_output].of_width(columns);
  const Activations& choices = pass.buffers[BufferId::choices];
  const size_t width = 2 * used + pass.expert_rows.offsets.size() - 1;
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) {
    float* sum = results.row(r) + (separate ? columns : 0);
    if (!feed_forward) std::fill_n(sum, columns, 0.0f);
    if (gate) {
      const float factor = 1.0f / (1.0f + std::exp(-pass.buffers[BufferId::ffn_gate].x[r]));
      for (size_t i = 0; i < columns; ++i) sum[i] *= factor;
    }
    const float* experts = choices.x + r * width;
    for (size_t k = 0; k < used; ++k) {
      const float* output = outputs.row(pass.expert_rows.pairs[r * used + k]);
      const float weight = experts[used + k];
      for (size_t i = 0; i < columns; ++i) sum[i] += weight * output[i];
      if (bias == nullptr) continue;
      const float* own = bias->data() + static_cast<size_t>(experts[k]) * columns;
      for (size_t i = 0; i < columns; ++i) sum[i] += weight * own[i];
    }
  }
}

}  // namespace hearth
