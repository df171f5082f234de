#include "vulkan/host_router.h"

#include <algorithm>

#include "hearth/cpu.h"
#include "shard/pass.h"
#include "vulkan/recorder.h"

namespace hearth::vulkan {

HostRouter::HostRouter(const ShardConfig& config, ThreadPool& pool)
    : config_(config),
      pool_(pool),
      queue_(pool.size()),
      no_kv_({.layers = {}, .page_size = 1, .max_pages = 0, .type = config.kv_type}),
      no_states_({.floats = {}, .log_floats = {}, .slots = 0, .undo = 0}) {}

void HostRouter::prepare(const Program& program) {
  const PerBuffer<BufferPlan> all = program.plan_buffers();
  for (const BufferId id :
       {BufferId::normed, BufferId::router, BufferId::choices, BufferId::scratch})
    plan_[id] = all[id];
}

void HostRouter::run(std::span<const Operation* const> operations, const Batch& batch,
                     const HostArrays& arrays) {
  const size_t rows = batch.rows().size(), hidden = config_.hidden_size;
  const Route* route = nullptr;
  bool norms = false;
  for (const Operation* each : operations) {
    norms = norms || std::holds_alternative<Norm>(*each);
    if (std::holds_alternative<Route>(*each)) route = std::get_if<Route>(each);
  }
  const Kernels& kernels = kernels_in_use();
  workspace_.resize(plan_, rows, kernels.matmul_scratch / sizeof(float), pool_.size());
  // A copy: the GPU adds the sum to its own.
  if (norms) residual_.assign(arrays.residual, arrays.residual + rows * hidden);
  workspace_.bind(BufferId::residual, residual_.data(), hidden);
  workspace_.bind(BufferId::partial, arrays.partial, hidden);
  workspace_.bind(BufferId::two_results, arrays.two_results, 2 * hidden);
  if (route != nullptr) expert_rows_.reserve(route->config.count, rows * route->config.used);
  const std::vector<std::vector<RowRange>> no_ranges;
  std::vector<uint32_t> not_finite_at(rows, kFinite);
  Pass pass = {.kernels = kernels,
               .pool = pool_,
               .queue = queue_,
               .kv = no_kv_,
               .states = no_states_,
               .buffers = workspace_,
               .batch = batch,
               .row_ranges = no_ranges,
               .expert_rows = expert_rows_,
               .lane = nullptr,
               .not_finite_at = not_finite_at,
               .sync_ns = 0,
               .error = nullptr};
  pool_.run([&](size_t thread) {
    for (const Operation* each : operations) {
      std::visit([&](const auto& operation) { operation.run(pass, thread); }, *each);
      pool_.barrier();
    }
  });
  if (route != nullptr) write_choices(*route, rows, arrays);
}

void HostRouter::write_choices(const Route& route, size_t rows, const HostArrays& arrays) const {
  const size_t used = route.config.used, count = route.config.count;
  const Activations choices = workspace_[BufferId::choices].of_width(2 * used + count);
  for (size_t r = 0; r < rows; ++r)
    std::copy_n(choices.row(r), 2 * used, arrays.choices + r * 2 * used);
  std::copy_n(expert_rows_.pairs.data(), rows * used, arrays.places);
  std::copy_n(expert_rows_.rows.data(), rows * used, arrays.pair_rows);
  const ExpertTiles tiles = expert_tiles(count, used, rows);
  uint32_t* tile = arrays.tiles;
  for (uint32_t e = 0; e < count; ++e) {
    const uint32_t end = expert_rows_.offsets[e + 1];
    for (uint32_t place = expert_rows_.offsets[e]; place < end; place += tiles.places, tile += 4) {
      tile[0] = e;
      tile[1] = place;
      tile[2] = std::min(end - place, tiles.places);
    }
  }
  for (; tile < arrays.tiles + 4 * tiles.count; tile += 4) tile[2] = 0;
}

}  // namespace hearth::vulkan
