// Lanes: Python's own, and the mesh.
#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "hearth/lane.h"
#include "hearth/mesh.h"
#include "hearth/stage_link.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

// A lane whose all_reduce is Python's. The shard calls it without the GIL.
class PythonLane : public Lane, public py::trampoline_self_life_support {
 public:
  void all_reduce(float* x, size_t rows, size_t columns, bool exact) override {
    const WithGil held;
    const auto* lane = static_cast<const Lane*>(this);
    py::function call;
    if (exact) call = py::get_override(lane, "all_reduce_exact");
    if (!call) call = py::get_override(lane, "all_reduce");
    if (!call) throw std::logic_error("this lane defines no all_reduce");
    // A view: the capsule keeps numpy from copying, and owns nothing.
    const py::capsule unowned(x, [](void*) {});
    const Floats view({rows, columns}, x, unowned);
    PyObject* result = unless_exiting([&] { return PyObject_CallOneArg(call.ptr(), view.ptr()); });
    if (result == nullptr) throw py::error_already_set();
    Py_DECREF(result);
  }
};

// In place: the argument must not be converted (noconvert), or a copy would be summed and dropped.
void all_reduce(Lane& lane, Floats& x) {
  if (x.ndim() != 2) throw std::invalid_argument("all_reduce takes [rows, columns]");
  float* data = x.mutable_data();
  const size_t rows = x.shape(0), columns = x.shape(1);
  const WithoutGil released;
  lane.all_reduce(data, rows, columns);
}

size_t checked_direct_bytes(size_t ranks, const std::string& wire, const LinkCosts& costs) {
  if (ranks < 2 || ranks > kMostRanks)
    throw std::invalid_argument("a mesh has 2 to " + std::to_string(kMostRanks) + " ranks");
  return direct_bytes(ranks, parse_wire_type(wire), costs);
}

// A LaneError of the core is a LaneError in Python, with the rank.
void bind_lane_error(py::module_& module) {
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
}

void bind_link_costs(py::module_& module) {
  using namespace py::literals;
  py::class_<LinkCosts>(module, "LinkCosts", "What a sync costs over the ranks' links.")
      .def(py::init<uint64_t, uint64_t, uint64_t>(), py::kw_only(), "latency_ns"_a, "byte_ps"_a,
           "add_ps"_a)
      .def(py::self == py::self)
      .def_readonly("latency_ns", &LinkCosts::latency_ns)
      .def_readonly("byte_ps", &LinkCosts::byte_ps)
      .def_readonly("add_ps", &LinkCosts::add_ps);
  module.def("direct_bytes", &checked_direct_bytes, "ranks"_a, "wire"_a, "costs"_a,
             "The largest part that is to go direct, in bytes.");
}

using KeyPair = std::pair<py::bytes, py::bytes>;

// Keys to send and to receive with.
MeshKeys mesh_keys(const KeyPair& pair) {
  const auto copied = [](const py::bytes& from, MeshKey& to) {
    const std::string_view bytes = from;
    if (bytes.size() != to.size())
      throw std::invalid_argument("mesh: a key of " + std::to_string(bytes.size()) +
                                  " bytes, expected " + std::to_string(to.size()));
    std::copy(bytes.begin(), bytes.end(), to.begin());
  };
  MeshKeys keys;
  copied(pair.first, keys.send);
  copied(pair.second, keys.receive);
  return keys;
}

// Of each rank; empty ones at the rank's own place.
std::vector<MeshKeys> mesh_keys(size_t rank, const std::vector<KeyPair>& pairs) {
  std::vector<MeshKeys> keys(pairs.size());
  for (size_t r = 0; r < pairs.size(); ++r) {
    if (r != rank) keys[r] = mesh_keys(pairs[r]);
  }
  return keys;
}

void bind_mesh_lane(py::module_& module) {
  using namespace py::literals;
  py::class_<MeshLane, Lane, py::smart_holder>(module, "MeshLane",
                                               "Syncs over the ranks' own TCP connections.")
      .def(py::init([](size_t rank, const std::vector<int>& sockets, const std::string& wire,
                       double deadline_seconds, const std::string& cipher,
                       const std::vector<KeyPair>& keys, uint64_t direct_bytes, size_t first_rank) {
             return std::make_unique<MeshLane>(
                 MeshConfig{rank, sockets, parse_wire_type(wire), deadline_seconds, direct_bytes,
                            parse_mesh_cipher(cipher), mesh_keys(rank, keys), first_rank});
           }),
           py::kw_only(), "rank"_a, "sockets"_a, "wire"_a, "deadline_seconds"_a, "cipher"_a,
           "keys"_a, "direct_bytes"_a = uint64_t{0}, "first_rank"_a = size_t{0})
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
      .def("close", &MeshLane::close, "Ends the connections, from any thread.")
      .def("all_reduce", &all_reduce, "x"_a.noconvert(), "Adds up x over all ranks, in place.")
      .def_property_readonly("sent_bytes", &MeshLane::sent_bytes)
      .def_property_readonly("received_bytes", &MeshLane::received_bytes);
}

void bind_stage_link(py::module_& module) {
  using namespace py::literals;
  py::class_<StageLink, py::smart_holder>(module, "StageLink",
                                          "Activations on their way to the next stage.")
      .def(py::init([](size_t rank, size_t peer, int socket, double deadline_seconds,
                       const std::string& cipher, const KeyPair& keys) {
             return std::make_unique<StageLink>(StageLinkConfig{
                 rank, peer, socket, deadline_seconds, parse_mesh_cipher(cipher), mesh_keys(keys)});
           }),
           py::kw_only(), "rank"_a, "peer"_a, "socket"_a, "deadline_seconds"_a, "cipher"_a,
           "keys"_a)
      .def(
          "send",
          [](StageLink& link, uint32_t step, const py::bytes& payload) {
            const std::string_view bytes = payload;
            const WithoutGil released;
            link.send(step, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
          },
          "step_id"_a, "payload"_a, "Sends a step's activations, a large frame in the background.")
      .def(
          "receive",
          [](StageLink& link, uint32_t step, size_t size) {
            py::array_t<uint8_t> payload(static_cast<py::ssize_t>(size));
            const std::span<uint8_t> bytes{payload.mutable_data(), size};
            const WithoutGil released;
            link.receive(step, bytes);
            return payload;
          },
          "step_id"_a, "size"_a, "Waits for a step's activations, of so many bytes.")
      .def("abort", &StageLink::abort, "Ends a wait that is under way, from any thread.")
      .def("close", &StageLink::close, "Ends the connection, from any thread.");
}

}  // namespace

void bind_lanes(py::module_& module) {
  using namespace py::literals;
  py::class_<Lane, PythonLane, py::smart_holder>(module, "Lane",
                                                 "How a sync travels; define all_reduce.")
      .def(py::init<>())
      .def("all_reduce", &all_reduce, "x"_a.noconvert(),
           "Adds up x over all ranks, in place: f32 [rows, hidden_size].");
  bind_lane_error(module);
  bind_link_costs(module);
  bind_mesh_lane(module);
  bind_stage_link(module);
  module.def("mesh_ciphers", &mesh_ciphers,
             "Ciphers that this machine can encrypt a mesh with, the faster first.");
}

}  // namespace hearth::bindings
