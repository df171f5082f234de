// Shards, lanes and samplers.
#include "hearth/shard.h"

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "hearth/bandwidth.h"
#include "hearth/cpu.h"
#include "hearth/mesh.h"
#include "hearth/sampler.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

// A lane whose all_reduce is Python's. The shard calls it without the GIL.
class PythonLane : public Lane, public py::trampoline_self_life_support {
 public:
  void all_reduce(float* x, size_t rows, size_t columns) override {
    const WithGil held;
    const py::function call = py::get_override(static_cast<const Lane*>(this), "all_reduce");
    if (!call) throw std::logic_error("this lane defines no all_reduce");
    // A view: the capsule keeps numpy from copying, and owns nothing.
    const py::capsule unowned(x, [](void*) {});
    const Floats view({rows, columns}, x, unowned);
    PyObject* result = unless_exiting([&] { return PyObject_CallOneArg(call.ptr(), view.ptr()); });
    if (result == nullptr) throw py::error_already_set();
    Py_DECREF(result);
  }
};

struct StepOutput {
  Floats logits, activations;
  StepTiming timing;
};

using Pair = std::pair<size_t, size_t>;

py::tuple best(const Floats& logits, size_t count, uint32_t first_id) {
  if (logits.ndim() != 2) throw std::invalid_argument("best takes [rows, n] logits");
  const size_t rows = logits.shape(0), columns = logits.shape(1);
  if (count == 0 || count > columns) {  // before anything is made that large
    throw std::invalid_argument(std::to_string(count) + " candidates of " +
                                std::to_string(columns) + " logits");
  }
  Floats values({rows, count});
  Ids ids({rows, count});
  for (size_t r = 0; r < rows; ++r) {
    best_candidates({logits.data() + r * columns, columns}, count, first_id,
                    values.mutable_data() + r * count, ids.mutable_data() + r * count);
  }
  return py::make_tuple(values, ids);
}

StepOutput step(Shard& shard, const Floats& activations,
                const std::vector<std::tuple<size_t, size_t, Ids>>& sequences,
                const std::vector<uint32_t>& output_rows, Lane* lane) {
  const ShardConfig& config = shard.config();
  if (activations.ndim() != 2 || static_cast<size_t>(activations.shape(1)) != config.hidden_size) {
    throw std::invalid_argument("activations are [rows, " + std::to_string(config.hidden_size) +
                                "]");
  }
  if (output_rows.size() > static_cast<size_t>(activations.shape(0))) {
    throw std::invalid_argument(std::to_string(output_rows.size()) + " output rows of a step of " +
                                std::to_string(activations.shape(0)) + " rows");
  }
  std::vector<SequenceStep> steps;
  steps.reserve(sequences.size());
  for (const auto& [rows, position, pages] : sequences) {
    if (pages.ndim() != 1) throw std::invalid_argument("a sequence's pages are [n]");
    steps.push_back({rows, position, {pages.data(), static_cast<size_t>(pages.size())}});
  }
  StepOutput out;
  out.activations = Floats({activations.shape(0), activations.shape(1)});
  std::copy_n(activations.data(), activations.size(), out.activations.mutable_data());
  out.logits = Floats({output_rows.size(), config.vocab.size()});
  const std::span<float> x(out.activations.mutable_data(), static_cast<size_t>(activations.size()));
  float* logits = out.logits.mutable_data();
  {
    const WithoutGil released;
    out.timing = shard.step(x, steps, output_rows, logits, lane);
  }
  return out;
}

}  // namespace

void bind_shard(py::module_& module) {
  using namespace py::literals;
  module.def(
      "instruction_set", [] { return std::string(kernels_in_use().name); }, "The kernels in use.");
  module.def("instruction_sets", &instruction_sets, "The kernels that this CPU can run.");
  module.def("set_instruction_set", &use_kernels, "name"_a,
             "Chooses the kernels of shards made from now on.");

  module.def("best", &best, "logits"_a, "count"_a, "first_id"_a,
             "The best of each row: f32 [rows, count] and u32 [rows, count] ids.");
  module.def(
      "read_bandwidth",
      [](size_t threads, size_t bytes, size_t repeats, const std::vector<int>& pin) {
        const WithoutGil released;
        ThreadPool pool(threads, pin);
        return read_bandwidth(pool, bytes, repeats);
      },
      "threads"_a, "bytes"_a = size_t{256} << 20, "repeats"_a = 5, "pin"_a = std::vector<int>{},
      "Bytes per second that so many threads read from memory.");
  module.def(
      "kv_head_bytes",
      [](const std::string& type, size_t head_size, size_t page_size) {
        return kv_head_bytes(parse_kv_type(type), head_size, page_size);
      },
      "type"_a, "head_size"_a, "page_size"_a,
      "Bytes of the keys and values of one head in one page.");

  py::class_<Lane, PythonLane, py::smart_holder>(module, "Lane",
                                                 "How a sync travels; define all_reduce.")
      .def(py::init<>())
      .def(
          "all_reduce",
          [](Lane& lane, Floats& x) {
            if (x.ndim() != 2) throw std::invalid_argument("all_reduce takes [rows, columns]");
            lane.all_reduce(x.mutable_data(), x.shape(0), x.shape(1));
          },
          "x"_a, "Adds up x over all ranks, in place: f32 [rows, hidden_size].");

  static py::exception<LaneError> lane_error(module, "LaneError", PyExc_RuntimeError);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const LaneError& error) {
      py::object instance = py::reinterpret_borrow<py::object>(lane_error)(error.what());
      instance.attr("rank") = error.rank();
      PyErr_SetObject(lane_error.ptr(), instance.ptr());
    }
  });
  py::class_<LinkCosts>(module, "LinkCosts", "What a sync costs over the ranks' links.")
      .def(py::init<uint64_t, uint64_t, uint64_t>(), py::kw_only(), "latency_ns"_a, "byte_ps"_a,
           "add_ps"_a)
      .def(py::self == py::self)
      .def_readonly("latency_ns", &LinkCosts::latency_ns)
      .def_readonly("byte_ps", &LinkCosts::byte_ps)
      .def_readonly("add_ps", &LinkCosts::add_ps);
  module.def(
      "direct_bytes",
      [](size_t ranks, const std::string& wire, const LinkCosts& costs) {
        if (ranks < 2 || ranks > kMostRanks)
          throw std::invalid_argument("a mesh has 2 to " + std::to_string(kMostRanks) + " ranks");
        return direct_bytes(ranks, parse_wire_type(wire), costs);
      },
      "ranks"_a, "wire"_a, "costs"_a, "The largest part that is to go direct, in bytes.");
  py::class_<MeshLane, Lane, py::smart_holder>(module, "MeshLane",
                                               "Syncs over the ranks' own TCP connections.")
      .def(py::init([](size_t rank, const std::vector<int>& sockets, const std::string& wire,
                       double deadline_seconds, uint64_t direct_bytes) {
             return std::make_unique<MeshLane>(
                 MeshConfig{rank, sockets, parse_wire_type(wire), deadline_seconds, direct_bytes});
           }),
           py::kw_only(), "rank"_a, "sockets"_a, "wire"_a, "deadline_seconds"_a,
           "direct_bytes"_a = uint64_t{0})
      .def(
          "measure",
          [](MeshLane& lane, double seconds) {
            const WithoutGil released;
            return lane.measure(seconds);
          },
          "seconds"_a, "Measures the links, on all ranks at once, and chooses how syncs travel.")
      .def_property_readonly("direct_bytes", &MeshLane::direct_bytes)
      .def("begin", &MeshLane::begin, "step_id"_a, "The next syncs are those of this step.")
      .def("abort", &MeshLane::abort, "Ends a sync that is under way, from any thread.")
      .def("close", &MeshLane::close, "Ends the connections; no sync may be under way.")
      .def(
          "all_reduce",
          [](MeshLane& lane, Floats& x) {
            if (x.ndim() != 2) throw std::invalid_argument("all_reduce takes [rows, columns]");
            float* data = x.mutable_data();
            const size_t rows = x.shape(0), columns = x.shape(1);
            const WithoutGil released;
            lane.all_reduce(data, rows, columns);
          },
          "x"_a, "Adds up x over all ranks, in place.")
      .def_property_readonly("sent_bytes", &MeshLane::sent_bytes)
      .def_property_readonly("received_bytes", &MeshLane::received_bytes);

  py::class_<StepOutput>(module, "StepOutput", "Logits on the last stage, activations on others.")
      .def_readonly("logits", &StepOutput::logits)
      .def_readonly("activations", &StepOutput::activations)
      .def_property_readonly("wall_ns", [](const StepOutput& out) { return out.timing.wall_ns; })
      .def_property_readonly("compute_ns",
                             [](const StepOutput& out) { return out.timing.compute_ns; })
      .def_property_readonly("sync_ns", [](const StepOutput& out) { return out.timing.sync_ns; });

  py::class_<Shard>(module, "Shard", "What one node holds of a model, and its steps.")
      .def(py::init([](size_t hidden_size, Pair layers, Pair heads, Pair kv_heads, size_t head_size,
                       Pair ffn, Pair vocab, float norm_epsilon,
                       const std::vector<float>& rope_frequencies, const std::string& kv_type,
                       size_t page_size, size_t max_pages, size_t max_step_tokens, bool embedding,
                       size_t vocab_size, bool head_from_embedding, size_t threads,
                       std::vector<int> pin) {
             const auto span = [](Pair pair) { return Span{pair.first, pair.second}; };
             return std::make_unique<Shard>(ShardConfig{.hidden_size = hidden_size,
                                                        .layers = span(layers),
                                                        .heads = span(heads),
                                                        .kv_heads = span(kv_heads),
                                                        .head_size = head_size,
                                                        .ffn = span(ffn),
                                                        .vocab = span(vocab),
                                                        .norm_epsilon = norm_epsilon,
                                                        .rope_frequencies = rope_frequencies,
                                                        .kv_type = parse_kv_type(kv_type),
                                                        .page_size = page_size,
                                                        .max_pages = max_pages,
                                                        .max_step_tokens = max_step_tokens,
                                                        .embedding = embedding,
                                                        .vocab_size = vocab_size,
                                                        .head_from_embedding = head_from_embedding},
                                            threads, std::move(pin));
           }),
           py::kw_only(), "hidden_size"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_size"_a,
           "ffn"_a, "vocab"_a, "norm_epsilon"_a, "rope_frequencies"_a, "kv_type"_a, "page_size"_a,
           "max_pages"_a, "max_step_tokens"_a, "embedding"_a, "vocab_size"_a,
           "head_from_embedding"_a, "threads"_a, "pin"_a = std::vector<int>{})
      .def("expected", &Shard::expected, "Every slice it needs: name -> (rows, columns).")
      .def("missing", &Shard::missing, "Slices not loaded yet.")
      .def(
          "load",
          [](Shard& shard, const std::string& name, const std::string& type, const py::buffer& data,
             size_t first_row) {
            const py::buffer_info info = data.request();
            if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
              throw std::invalid_argument("slice data are not contiguous");
            const std::span bytes(static_cast<const uint8_t*>(info.ptr),
                                  static_cast<size_t>(info.size * info.itemsize));
            const Type parsed = parse_type(type);
            const WithoutGil released;
            shard.load(name, parsed, bytes, first_row);
          },
          "name"_a, "type"_a, "data"_a, "first_row"_a = 0, "Packs rows of a slice for this CPU.")
      .def_property_readonly("weight_bytes", &Shard::weight_bytes)
      .def_property_readonly("kv_bytes", [](const Shard& shard) { return shard.kv_bytes(); })
      .def_property_readonly("kv_pages", [](const Shard& shard) { return shard.kv_pages(); })
      .def(
          "embed",
          [](const Shard& shard, const Ids& tokens) {
            if (tokens.ndim() != 1) throw std::invalid_argument("embed takes [n] token ids");
            Floats out({static_cast<size_t>(tokens.size()), shard.config().hidden_size});
            shard.embed({tokens.data(), static_cast<size_t>(tokens.size())}, out.mutable_data());
            return out;
          },
          "tokens"_a, "[n] token ids -> f32 [n, hidden_size].")
      .def("step", &step, "activations"_a, "sequences"_a, "output_rows"_a, "lane"_a.none(true),
           "One forward pass of a batch.");

  py::class_<Sampler>(module, "Sampler", "Chooses tokens; one for each sequence.")
      .def(
          py::init([](float temperature, uint32_t top_k, float top_p, float min_p,
                      float repetition_penalty, uint64_t seed) {
            return std::make_unique<Sampler>(SamplerConfig{.temperature = temperature,
                                                           .top_k = top_k,
                                                           .top_p = top_p,
                                                           .min_p = min_p,
                                                           .repetition_penalty = repetition_penalty,
                                                           .seed = seed});
          }),
          "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
          "repetition_penalty"_a = 1.0f, "seed"_a = 0)
      .def(
          "sample",
          [](Sampler& sampler, const Floats& logits, const std::optional<Ids>& ids) {
            if (logits.ndim() != 1 || (ids && ids->ndim() != 1))
              throw std::invalid_argument("sample takes [n] logits, and as many ids if any");
            const std::span<const float> row(logits.data(), static_cast<size_t>(logits.size()));
            if (!ids) return sampler.sample(row);
            return sampler.sample(row, {ids->data(), static_cast<size_t>(ids->size())});
          },
          "logits"_a, "ids"_a = py::none(), "f32 [n], and u32 [n] ids if not all -> token id.")
      .def("accept", &Sampler::accept, "token"_a, "Counts a token as seen.")
      .def(
          "accept_prompt",
          [](Sampler& sampler, const Ids& tokens) {
            if (tokens.ndim() != 1) throw std::invalid_argument("tokens of a prompt are [n]");
            for (py::ssize_t i = 0; i < tokens.size(); ++i) sampler.accept(tokens.data()[i]);
          },
          "tokens"_a, "Counts the tokens of a prompt as seen: u32 [n].");
}

}  // namespace hearth::bindings
