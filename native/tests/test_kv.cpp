// The KV cache: which page has memory, where a position's numbers lie, and that no two share any.
#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "hearth/cpu.h"
#include "hearth/quant.h"
#include "shard/kv_cache.h"

using namespace hearth;

namespace {

const KvShape kShape = {.layers = std::vector<KvLayer>(3, {2, 10, 10}),
                        .page_size = 4,
                        .max_pages = 5,
                        .type = KvType::f32};

KvShape shape_of(KvType type) {
  KvShape shape = kShape;
  shape.type = type;
  return shape;
}

void test_memory() {
  for (KvType type : {KvType::f32, KvType::f16}) {
    KvCache cache(shape_of(type));
    // Keys of 4 slots take the room of 8.
    const size_t bytes = 3 * 2 * (8 + 4) * 10 * (type == KvType::f32 ? 4u : 2u);
    CHECK_EQUAL(cache.page_bytes(), bytes);
    CHECK_EQUAL(cache.size_bytes(), size_t{0});
    cache.ensure(4);
    cache.ensure(1);
    cache.ensure(4);
    CHECK_EQUAL(cache.pages(), size_t{2});
    CHECK_EQUAL(cache.size_bytes(), 2 * bytes);
    CHECK_THROWS(cache.ensure(5), std::invalid_argument, "page 5 of a KV cache of 5 pages");
    CHECK_THROWS(cache.ensure(0xffffffffu), std::invalid_argument, "4294967295");
    CHECK_EQUAL(cache.pages(), size_t{2});
  }
}

// Pages from a number on give their memory back, whichever of them have any; later they are new.
void test_release() {
  KvShape shape = kShape;
  shape.max_pages = 5000;  // several leaves of the table
  KvCache cache(shape);
  const std::vector<uint32_t> numbers = {0, 1, 7, 1023, 1024, 1030, 2500, 4999};
  for (uint32_t number : numbers) cache.ensure(number);
  static_cast<float*>(cache.keys(1, 0, 0))[0] = 5.0f;
  static_cast<float*>(cache.keys(7, 0, 0))[0] = 6.0f;
  size_t left = numbers.size();
  for (size_t first : {size_t{6000}, size_t{5000}, size_t{4999}, size_t{1025}, size_t{1024},
                       size_t{8}, size_t{7}}) {
    const test::Case each("from page ", first);
    cache.release_from(first);
    left = static_cast<size_t>(std::count_if(numbers.begin(), numbers.end(),
                                             [&](uint32_t number) { return number < first; }));
    CHECK_EQUAL(cache.pages(), left);
    CHECK_EQUAL(cache.size_bytes(), left * cache.page_bytes());
  }
  CHECK_EQUAL(static_cast<float*>(cache.keys(1, 0, 0))[0], 5.0f);
  cache.ensure(7);
  CHECK_EQUAL(static_cast<float*>(cache.keys(7, 0, 0))[0], 0.0f);
  cache.ensure(4999);
  CHECK_EQUAL(cache.pages(), size_t{4});
  cache.release_from(0);
  CHECK_EQUAL(cache.pages(), size_t{0});
}

// A plan may allow for many more pages than there will be: only those in use cost memory.
void test_a_large_plan_is_not_made_at_once() {
  KvShape shape = kShape;
  shape.max_pages = size_t{1} << 32;
  KvCache cache(shape);
  cache.ensure(0xffffffffu);
  CHECK_EQUAL(cache.pages(), size_t{1});
}

// Every strip lies within its page and begins where no other does.
void test_places() {
  for (KvType type : {KvType::f32, KvType::f16}) {
    KvCache cache(shape_of(type));
    const size_t values_bytes = 4 * 10 * (type == KvType::f32 ? 4u : 2u);
    const size_t keys_bytes = 2 * values_bytes;
    for (uint32_t page : {0u, 3u}) {
      cache.ensure(page);
      std::set<const uint8_t*> places;
      for (size_t layer = 0; layer < 3; ++layer) {
        for (size_t head = 0; head < 2; ++head) {
          places.insert(static_cast<const uint8_t*>(cache.keys(page, layer, head)));
          places.insert(static_cast<const uint8_t*>(cache.values(page, layer, head)));
        }
      }
      CHECK_EQUAL(places.size(), size_t{12});
      const uint8_t* wanted = *places.begin();
      bool keys = true;
      for (const uint8_t* place : places) {
        CHECK(place == wanted);
        wanted += keys ? keys_bytes : values_bytes;
        keys = !keys;
      }
      CHECK_EQUAL(static_cast<size_t>(wanted - *places.begin()), cache.page_bytes());
    }
  }
}

// All numbers of one head in one page, as they lie there: keys [10, 8], values [4, 10].
std::vector<float> numbers_of(const void* rows, size_t count, KvType type) {
  std::vector<float> all(count);
  for (size_t i = 0; i < count; ++i) {
    all[i] = type == KvType::f32 ? static_cast<const float*>(rows)[i]
                                 : f16_to_f32(static_cast<const uint16_t*>(rows)[i]);
  }
  return all;
}

// What is stored is there, in its type, and nothing beside it changes: a new page is zeros.
void test_store() {
  for (const auto& name : instruction_sets()) {
    const Kernels& kernels = *find_kernels(name);
    for (KvType type : {KvType::f32, KvType::f16}) {
      for (bool value : {false, true}) {
        const test::Case each(name, type == KvType::f32 ? " f32" : " f16",
                              value ? " value" : " key");
        KvCache cache(shape_of(type));
        CHECK_EQUAL(cache.stride(), size_t{8});
        cache.ensure(2);
        std::vector<float> x(10), wanted_keys(80, 0.0f), wanted_values(40, 0.0f);
        for (size_t i = 0; i < 10; ++i) {
          x[i] = 1.0f / static_cast<float>(i + 3);
          const float held = type == KvType::f32 ? x[i] : f16_to_f32(f32_to_f16(x[i]));
          (value ? wanted_values[3 * 10 + i] : wanted_keys[i * 8 + 3]) = held;
        }
        value ? cache.store_value(kernels, cache.values(2, 1, 1), 3, x.data(), 10)
              : cache.store_key(kernels, cache.keys(2, 1, 1), 3, x.data(), 10);
        for (size_t layer = 0; layer < 3; ++layer) {
          for (size_t head = 0; head < 2; ++head) {
            const bool here = layer == 1 && head == 1;
            const std::vector<float> keys = numbers_of(cache.keys(2, layer, head), 80, type);
            const std::vector<float> values = numbers_of(cache.values(2, layer, head), 40, type);
            CHECK_SAME(keys, here ? wanted_keys : std::vector<float>(80, 0.0f));
            CHECK_SAME(values, here ? wanted_values : std::vector<float>(40, 0.0f));
          }
        }
        if (type == KvType::f16) {
          std::vector<float> keys(80, 1.0f), values(40, 1.0f);
          cache.widen_keys(kernels, cache.keys(2, 1, 1), 10, keys.data());
          cache.widen_values(kernels, cache.values(2, 1, 1), 4, 10, values.data());
          CHECK_SAME(keys, wanted_keys);
          CHECK_SAME(values, wanted_values);
        }
      }
    }
  }
}

// q80: within half a step of what went in, in its own position only, and in no other's scales.
void test_q80() {
  CHECK_EQUAL(kv_head_bytes(KvType::q80, 64, 64, 16), size_t{2 * 16 * 72});
  CHECK_EQUAL(kv_head_bytes(KvType::q80, 64, 64, 3), size_t{(8 + 3) * 72});
  CHECK_THROWS(kv_head_bytes(KvType::q80, 10, 10, 8), std::invalid_argument, "not 10");
  KvShape shape = shape_of(KvType::q80);
  shape.layers.assign(3, {2, 64, 64});
  for (const auto& name : instruction_sets()) {
    const Kernels& kernels = *find_kernels(name);
    const test::Case each(name);
    KvCache cache(shape);
    CHECK_EQUAL(cache.page_bytes(), size_t{3 * 2 * (8 + 4) * 72});
    cache.ensure(4);
    for (size_t slot = 0; slot < 4; ++slot) {
      std::vector<float> x(64), y(64);
      for (size_t i = 0; i < 64; ++i) {
        x[i] = std::sin(static_cast<float>(slot * 64 + i));
        y[i] = std::cos(static_cast<float>(slot * 64 + i));
      }
      cache.store_key(kernels, cache.keys(4, 2, 0), slot, x.data(), 64);
      cache.store_value(kernels, cache.values(4, 2, 0), slot, y.data(), 64);
    }
    std::vector<float> keys(64 * 8), values(4 * 64);
    cache.widen_keys(kernels, cache.keys(4, 2, 0), 64, keys.data());
    cache.widen_values(kernels, cache.values(4, 2, 0), 4, 64, values.data());
    for (size_t slot = 0; slot < 8; ++slot) {
      for (size_t i = 0; i < 64; ++i) {
        const auto at = static_cast<float>(slot * 64 + i);
        CHECK_NEAR(keys[i * 8 + slot], slot < 4 ? std::sin(at) : 0.0f, 0.5001 / 127.0);
        if (slot < 4) CHECK_NEAR(values[slot * 64 + i], std::cos(at), 0.5001 / 127.0);
      }
    }
    for (const auto& [layer, head] : {std::pair{2, 1}, {1, 0}}) {
      cache.widen_keys(kernels, cache.keys(4, layer, head), 64, keys.data());
      cache.widen_values(kernels, cache.values(4, layer, head), 4, 64, values.data());
      for (float number : keys) CHECK_EQUAL(number, 0.0f);
      for (float number : values) CHECK_EQUAL(number, 0.0f);
    }
  }
}

// Layers of different shapes lie one after another in a page.
void test_layers_of_different_shapes() {
  const KvLayer small = {1, 4, 6}, large = {3, 10, 2};
  KvCache cache(
      {.layers = {small, large, small}, .page_size = 4, .max_pages = 2, .type = KvType::f32});
  const auto head_bytes = [](const KvLayer& layer) {
    return 4 * (8 * layer.key_size + 4 * layer.value_size);
  };
  CHECK_EQUAL(cache.page_bytes(), 2 * head_bytes(small) + 3 * head_bytes(large));
  cache.ensure(1);
  const auto place = [&](size_t layer, size_t head) {
    return static_cast<const uint8_t*>(cache.keys(1, layer, head));
  };
  const auto apart = [](const uint8_t* from, const uint8_t* to) {
    return static_cast<size_t>(to - from);
  };
  CHECK_EQUAL(apart(place(0, 0), place(1, 0)), head_bytes(small));
  CHECK_EQUAL(apart(place(1, 0), place(1, 1)), head_bytes(large));
  CHECK_EQUAL(apart(place(1, 0), place(2, 0)), 3 * head_bytes(large));
  const auto* values = static_cast<const uint8_t*>(cache.values(1, 1, 2));
  CHECK_EQUAL(apart(place(1, 2), values), size_t{4 * 8 * 10});
}

void test_buffer() {
  CHECK_EQUAL(Buffer(0).size(), size_t{0});
  Buffer buffer(100);
  CHECK_EQUAL(reinterpret_cast<uintptr_t>(buffer.data()) % 64, uintptr_t{0});
  for (size_t i = 0; i < 100; ++i) CHECK_EQUAL(buffer.data()[i], uint8_t{0});
  buffer.data()[99] = 7;
  const Buffer moved = std::move(buffer);
  CHECK_EQUAL(moved.data()[99], uint8_t{7});
  CHECK_EQUAL(moved.size(), size_t{100});
  CHECK_THROWS(Buffer(size_t{1} << 60), std::bad_alloc, "");
}

}  // namespace

int main() {
  test_memory();
  test_release();
  test_places();
  test_a_large_plan_is_not_made_at_once();
  test_store();
  test_q80();
  test_layers_of_different_shapes();
  test_buffer();
  return test::finish();
}
