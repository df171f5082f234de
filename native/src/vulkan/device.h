// A GPU by Vulkan: its memory, its pipelines, and the commands that it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hearth/devices.h"
#include "vulkan/api.h"
#include "vulkan/shaders.h"

namespace hearth::vulkan {

class Device;

// Where memory lies: with the GPU; or where the host reads and writes it too, and both see it.
enum class Place { device, shared };

// A buffer with memory of its own. All buffers are reached by address.
class Memory {
 public:
  Memory() = default;
  // Throws DeviceError, also when there is no memory left.
  Memory(const Device& device, size_t bytes, Place place);
  ~Memory();
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }

  size_t size() const { return size_; }
  VkDeviceAddress address() const { return address_; }
  VkBuffer buffer() const { return buffer_; }
  // nullptr where the host does not reach it.
  uint8_t* data() const { return data_; }

 private:
  void swap(Memory& other) noexcept;
  void free();

  const Device* device_ = nullptr;
  VkBuffer buffer_ = VK_NULL_HANDLE;
  VkDeviceMemory memory_ = VK_NULL_HANDLE;
  size_t size_ = 0;
  VkDeviceAddress address_ = 0;
  uint8_t* data_ = nullptr;
};

// A command buffer: recorded once, submitted as often as wanted.
class Commands {
 public:
  explicit Commands(const Device& device);
  ~Commands();
  Commands(const Commands&) = delete;
  Commands& operator=(const Commands&) = delete;

  // constants: of specialization, by number; arguments: the push constants.
  void dispatch(Shader shader, std::span<const uint32_t> constants,
                std::span<const uint8_t> arguments, uint32_t x, uint32_t y = 1);
  // Dispatches that follow see what those before it wrote.
  void barrier();
  void copy(const Memory& from, size_t from_offset, const Memory& to, size_t to_offset,
            size_t bytes);
  void end();
  VkCommandBuffer buffer() const { return buffer_; }

 private:
  const Device& device_;
  VkCommandBuffer buffer_ = VK_NULL_HANDLE;
};

// Not for two threads at once.
class Device {
 public:
  // Throws DeviceError for a device that is not there, or lacks what the shaders need.
  explicit Device(size_t number);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Four products of bytes are one instruction.
  bool has_integer_dot() const { return integer_dot_; }

  // Throws DeviceError if an earlier step has not ended in time: what it uses must stay as it is.
  void check() const;
  // Runs the commands and waits for their end. Throws DeviceError: the device is lost, or has not
  // ended them within a minute.
  void run(const Commands& commands) const;

  // Copies between the host and memory anywhere.
  void write(const Memory& to, size_t offset, std::span<const uint8_t> bytes) const;
  void read(const Memory& from, size_t offset, std::span<uint8_t> bytes) const;

 private:
  friend class Memory;
  friend class Commands;

  VkPipeline pipeline(Shader shader, std::span<const uint32_t> constants) const;
  uint32_t memory_type(uint32_t allowed, Place place) const;
  void staged(const Memory& memory, size_t offset, size_t bytes, bool to_device, uint8_t* into,
              const uint8_t* from) const;
  void open_queue(VkPhysicalDevice physical);
  void close();

  std::string name_;
  bool integer_dot_ = false;
  size_t most_bytes_ = 0;  // of one piece of memory
  VkPhysicalDeviceMemoryProperties memory_properties_{};
  DeviceFunctions functions_;
  VkDevice device_ = VK_NULL_HANDLE;
  VkQueue queue_ = VK_NULL_HANDLE;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkPipelineLayout layout_ = VK_NULL_HANDLE;
  VkFence fence_ = VK_NULL_HANDLE;
  mutable std::map<std::pair<Shader, std::vector<uint32_t>>, VkPipeline> pipelines_;
  mutable Memory staging_;
  mutable bool hangs_ = false;
};

}  // namespace hearth::vulkan
