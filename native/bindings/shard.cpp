// Shards and their steps.
#include "hearth/shard.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

struct StepOutput {
  Floats logits, activations;
  StepTiming timing;
  std::vector<NotFinite> not_finite;
};

void load(Shard& shard, const std::string& name, const std::string& type, const py::buffer& data,
          size_t first_row) {
  const py::buffer_info info = data.request();
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
    throw std::invalid_argument("slice data are not contiguous");
  const std::span bytes(static_cast<const uint8_t*>(info.ptr),
                        static_cast<size_t>(info.size * info.itemsize));
  const Type parsed = parse_type(type);
  const WithoutGil released;
  shard.load(name, parsed, bytes, first_row);
}

using ByteArray = py::array_t<uint8_t>;

ByteArray read_page(const Shard& shard, uint32_t page) {
  ByteArray out(static_cast<py::ssize_t>(shard.page_bytes()));
  const std::span<uint8_t> bytes(out.mutable_data(), shard.page_bytes());
  {
    const WithoutGil released;
    shard.read_page(page, bytes);
  }
  return out;
}

ByteArray read_state(const Shard& shard, uint32_t slot, size_t position) {
  ByteArray out(static_cast<py::ssize_t>(shard.state_bytes()));
  const std::span<uint8_t> bytes(out.mutable_data(), shard.state_bytes());
  {
    const WithoutGil released;
    shard.read_state(slot, position, bytes);
  }
  return out;
}

// The bytes of an argument, which must outlive what is returned.
std::span<const uint8_t> bytes_of(const py::buffer_info& info) {
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
    throw std::invalid_argument("the bytes are not contiguous");
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)};
}

void write_page(Shard& shard, uint32_t page, const py::buffer& data) {
  const py::buffer_info info = data.request();
  const std::span bytes = bytes_of(info);
  const WithoutGil released;
  shard.write_page(page, bytes);
}

void write_state(Shard& shard, uint32_t slot, size_t position, const py::buffer& data) {
  const py::buffer_info info = data.request();
  const std::span bytes = bytes_of(info);
  const WithoutGil released;
  shard.write_state(slot, position, bytes);
}

Floats embed(const Shard& shard, const Ids& tokens, const Ids& positions) {
  if (tokens.ndim() != 1 || positions.ndim() != 1)
    throw std::invalid_argument("embed takes [n] token ids and their positions");
  Floats out({static_cast<size_t>(tokens.size()), shard.config().row_size()});
  const auto ids = [](const Ids& array) {
    return std::span(array.data(), static_cast<size_t>(array.size()));
  };
  float* rows = out.mutable_data();
  {
    const WithoutGil released;
    shard.embed(ids(tokens), ids(positions), rows);
  }
  return out;
}

Floats final_norm(const Shard& shard, const Floats& rows) {
  if (rows.ndim() != 2 || static_cast<size_t>(rows.shape(1)) != shard.config().hidden_size) {
    throw std::invalid_argument("rows are [n, " + std::to_string(shard.config().hidden_size) + "]");
  }
  Floats out({rows.shape(0), rows.shape(1)});
  std::copy_n(rows.data(), rows.size(), out.mutable_data());
  const std::span<float> made(out.mutable_data(), static_cast<size_t>(out.size()));
  {
    const WithoutGil released;
    shard.final_norm(made);
  }
  return out;
}

StepOutput step(Shard& shard, const Floats& activations,
                const std::vector<std::tuple<size_t, size_t, Ids>>& sequences,
                const std::vector<uint32_t>& output_rows, Lane* lane,
                const std::vector<uint32_t>& slots, const std::vector<size_t>& undo) {
  const ShardConfig& config = shard.config();
  if (activations.ndim() != 2 || static_cast<size_t>(activations.shape(1)) != config.row_size()) {
    throw std::invalid_argument("activations are [rows, " + std::to_string(config.row_size()) +
                                "]");
  }
  if (output_rows.size() > static_cast<size_t>(activations.shape(0))) {
    throw std::invalid_argument(std::to_string(output_rows.size()) + " output rows of a step of " +
                                std::to_string(activations.shape(0)) + " rows");
  }
  if (!slots.empty() && slots.size() != sequences.size()) {
    throw std::invalid_argument(std::to_string(slots.size()) + " slots for " +
                                std::to_string(sequences.size()) + " sequences");
  }
  if (!undo.empty() && undo.size() != sequences.size()) {
    throw std::invalid_argument(std::to_string(undo.size()) + " counts of undo for " +
                                std::to_string(sequences.size()) + " sequences");
  }
  std::vector<SequenceStep> steps;
  steps.reserve(sequences.size());
  for (const auto& [rows, position, pages] : sequences) {
    if (pages.ndim() != 1) throw std::invalid_argument("a sequence's pages are [n]");
    const uint32_t slot = slots.empty() ? 0 : slots[steps.size()];
    const size_t back = undo.empty() ? 0 : undo[steps.size()];
    steps.push_back(
        {rows, position, {pages.data(), static_cast<size_t>(pages.size())}, slot, back});
  }
  StepOutput out;
  out.activations = Floats({activations.shape(0), activations.shape(1)});
  std::copy_n(activations.data(), activations.size(), out.activations.mutable_data());
  out.logits = Floats({output_rows.size(), config.vocab.size()});
  const std::span<float> x(out.activations.mutable_data(), static_cast<size_t>(activations.size()));
  float* logits = out.logits.mutable_data();
  {
    const WithoutGil released;
    out.timing = shard.step(x, steps, output_rows, logits, lane, &out.not_finite);
  }
  return out;
}

void bind_step_output(py::module_& module) {
  py::class_<StepOutput>(module, "StepOutput", "Logits on the last stage, activations on others.")
      .def_readonly("logits", &StepOutput::logits)
      .def_readonly("activations", &StepOutput::activations)
      .def_property_readonly("not_finite",
                             [](const StepOutput& out) {
                               std::vector<std::pair<uint32_t, uint32_t>> pairs;
                               for (const auto& [row, sync] : out.not_finite)
                                 pairs.push_back({row, sync});
                               return pairs;
                             })
      .def_property_readonly("wall_ns", [](const StepOutput& out) { return out.timing.wall_ns; })
      .def_property_readonly("compute_ns",
                             [](const StepOutput& out) { return out.timing.compute_ns; })
      .def_property_readonly("sync_ns", [](const StepOutput& out) { return out.timing.sync_ns; });
}

}  // namespace

void bind_shard(py::module_& module) {
  using namespace py::literals;
  bind_config(module);
  bind_step_output(module);
  module.def(
      "kv_head_bytes",
      [](const std::string& type, size_t key_size, size_t value_size, size_t page_size) {
        return kv_head_bytes(parse_kv_type(type), key_size, value_size, page_size);
      },
      "type"_a, "key_size"_a, "value_size"_a, "page_size"_a,
      "Bytes of the keys and values of one head in one page.");

  module.def(
      "gated_delta_bytes",
      [](size_t group, size_t key_size, size_t value_size, size_t width, size_t undo) {
        const size_t log = undo * gated_delta_log_floats(group, key_size, value_size);
        return (gated_delta_floats(group, key_size, value_size, width) + log) * sizeof(float);
      },
      "group"_a, "key_size"_a, "value_size"_a, "width"_a, "undo"_a = 0,
      "Bytes of the state of one sequence and key head.");
  module.attr("MOST_UNDO") = kMostUndo;

  py::class_<Shard>(module, "Shard", "What one node holds of a model, and its steps.")
      .def(py::init([](ShardConfig config, size_t threads, std::vector<int> pin,
                       const std::string& device, std::vector<size_t> disk_layers,
                       std::string disk_folder) {
             const DiskWeights disk = {std::move(disk_layers), std::move(disk_folder)};
             return std::make_unique<Shard>(std::move(config), threads, std::move(pin), device,
                                            disk);
           }),
           "config"_a, py::kw_only(), "threads"_a, "pin"_a = std::vector<int>{}, "device"_a = "cpu",
           "disk_layers"_a = std::vector<size_t>{}, "disk_folder"_a = "")
      .def("expected", &Shard::expected, "Every slice it needs: name -> (rows, columns).")
      .def("missing", &Shard::missing, "Slices not loaded yet.")
      .def("load", &load, "name"_a, "type"_a, "data"_a, "first_row"_a = 0,
           "Packs rows of a slice for this CPU.")
      .def_property_readonly("weight_bytes", &Shard::weight_bytes)
      .def_property_readonly("disk_bytes", &Shard::disk_bytes)
      .def_property_readonly("kv_bytes", &Shard::kv_bytes)
      .def_property_readonly("kv_pages", &Shard::kv_pages)
      .def(
          "release_pages",
          [](Shard& shard, size_t first) {
            const WithoutGil released;
            shard.release_pages(first);
          },
          "first"_a, "Gives the memory of KV page `first` and those after it back.")
      .def(
          "copy_state",
          [](Shard& shard, uint32_t from, uint32_t to, size_t position) {
            const WithoutGil released;
            shard.copy_state(from, to, position);
          },
          "source"_a, "target"_a, "position"_a, "Copies the state of a slot to another.")
      .def_property_readonly("page_bytes", &Shard::page_bytes)
      .def_property_readonly("state_bytes", &Shard::state_bytes)
      .def("read_page", &read_page, "page"_a, "The content of a KV page: u8 [page_bytes].")
      .def("write_page", &write_page, "page"_a, "data"_a, "Replaces the content of a KV page.")
      .def("read_state", &read_state, "slot"_a, "position"_a,
           "The state of a slot after `position` positions: u8 [state_bytes].")
      .def("write_state", &write_state, "slot"_a, "position"_a, "data"_a,
           "Replaces the state of a slot.")
      .def("embed", &embed, "tokens"_a, "positions"_a,
           "[n] token ids and their positions -> f32 [n, row_size].")
      .def("final_norm", &final_norm, "rows"_a,
           "Activations of the last stage -> the same, after the norm before the head.")
      .def("step", &step, "activations"_a, "sequences"_a, "output_rows"_a, "lane"_a.none(true),
           "slots"_a = std::vector<uint32_t>{}, "undo"_a = std::vector<size_t>{},
           "One forward pass of a batch.");
}

}  // namespace hearth::bindings
