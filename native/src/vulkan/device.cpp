#include "vulkan/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "platform/library.h"

namespace hearth::vulkan {
namespace {

// A driver that has not ended a piece of a step after so long hangs. (A piece is one operation at
// least, which takes seconds where a CPU draws a prompt of thousands of tokens.)
constexpr uint64_t kPatienceNs = 60'000'000'000;
constexpr size_t kStagingBytes = size_t{16} << 20;
// Of the largest workgroups.
constexpr uint32_t kThreads = 256;
// Guaranteed by the specification.
constexpr uint32_t kPushBytes = 128;

// device: its name, where it is known.
[[noreturn]] void fail(const std::string& what, VkResult result, const std::string& device = "") {
  std::string reason = "error " + std::to_string(result);
  if (result == VK_ERROR_DEVICE_LOST) reason = "the device is lost";
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY) reason = "the device has no memory left";
  if (result == VK_ERROR_OUT_OF_HOST_MEMORY) reason = "the driver has no memory left";
  if (result == VK_TIMEOUT)
    reason =
        "the device has not finished after " + std::to_string(kPatienceNs / 1'000'000'000) + " s";
  throw DeviceError("Vulkan: " + (device.empty() ? "" : device + ": ") + what + ": " + reason);
}

void check(VkResult result, const char* what) {
  if (result != VK_SUCCESS) fail(what, result);
}

// True if an extension is among those that `list(count, all)` gives.
template <typename List>
bool contains(const char* extension, List list) {
  uint32_t count = 0;
  if (list(&count, nullptr) != VK_SUCCESS) return false;
  std::vector<VkExtensionProperties> all(count);
  // (VK_INCOMPLETE: there are more by now.)
  if (list(&count, all.data()) < VK_SUCCESS) return false;
  return std::any_of(all.begin(), all.begin() + count, [&](const VkExtensionProperties& each) {
    return std::strcmp(each.extensionName, extension) == 0;
  });
}

// The loader and its instance, of the whole process; it stays until the process ends.
class Instance {
 public:
  static const Instance& get() {
    static const Instance instance;
    return instance;
  }

  const InstanceFunctions& functions() const { return functions_; }
  const std::vector<VkPhysicalDevice>& devices() const { return devices_; }

 private:
  Instance() {
    // (Homebrew's folder on Apple's CPUs is not among those that macOS looks in.)
    const auto names = names_here({"vulkan-1.dll"},
                                  {"libvulkan.1.dylib", "/opt/homebrew/lib/libvulkan.1.dylib",
                                   "libMoltenVK.dylib", "/opt/homebrew/lib/libMoltenVK.dylib"},
                                  {"libvulkan.so.1"});
    void* library = nullptr;
    for (const char* name : names) {
      if (library == nullptr) library = open_library(name);
    }
    if (library == nullptr) return;
    const auto find =
        reinterpret_cast<PFN_vkGetInstanceProcAddr>(find_symbol(library, "vkGetInstanceProcAddr"));
    if (find == nullptr) return;
    const auto create = reinterpret_cast<PFN_vkCreateInstance>(find(nullptr, "vkCreateInstance"));
    if (create == nullptr) return;
    VkApplicationInfo application = {};
    application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
    application.pApplicationName = "hearth";
    application.apiVersion = VK_API_VERSION_1_2;
    VkInstanceCreateInfo info = {};
    info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
    info.pApplicationInfo = &application;
    // A loader with this extension hides devices that lack parts of Vulkan, as Apple's do, from
    // those who do not ask for them.
    static constexpr const char* kPortable[] = {VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME};
    if (has_extension(find, kPortable[0])) {
      info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
      info.enabledExtensionCount = 1;
      info.ppEnabledExtensionNames = kPortable;
    }
    VkInstance instance = VK_NULL_HANDLE;
    if (create(&info, nullptr, &instance) != VK_SUCCESS) return;
#define HEARTH_FIND(name) \
  functions_.name = reinterpret_cast<PFN_vk##name>(find(instance, "vk" #name));
    HEARTH_INSTANCE_FUNCTIONS(HEARTH_FIND)
#undef HEARTH_FIND
    uint32_t count = 0;
    if (functions_.EnumeratePhysicalDevices(instance, &count, nullptr) != VK_SUCCESS) return;
    devices_.resize(count);
    if (functions_.EnumeratePhysicalDevices(instance, &count, devices_.data()) != VK_SUCCESS)
      count = 0;
    devices_.resize(count);
  }

  static bool has_extension(PFN_vkGetInstanceProcAddr find, const char* name) {
    const auto list = reinterpret_cast<PFN_vkEnumerateInstanceExtensionProperties>(
        find(nullptr, "vkEnumerateInstanceExtensionProperties"));
    if (list == nullptr) return false;
    return contains(name, [&](uint32_t* count, VkExtensionProperties* all) {
      return list(nullptr, count, all);
    });
  }

  InstanceFunctions functions_;
  std::vector<VkPhysicalDevice> devices_;
};

const char* kind_of(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return "cpu";
    default:
      return "other";
  }
}

bool has_extension(VkPhysicalDevice device, const char* name) {
  return contains(name, [&](uint32_t* count, VkExtensionProperties* all) {
    return Instance::get().functions().EnumerateDeviceExtensionProperties(device, nullptr, count,
                                                                          all);
  });
}

struct Features {
  Features() {
    all.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    storage16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES;
    addresses.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES;
    integer_dot.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES;
    all.pNext = &storage16;
    storage16.pNext = &addresses;
  }
  Features(const Features&) = delete;

  VkPhysicalDeviceFeatures2 all = {};
  VkPhysicalDevice16BitStorageFeatures storage16 = {};
  VkPhysicalDeviceBufferDeviceAddressFeatures addresses = {};
  // Of an extension: in the chain where the device has it.
  VkPhysicalDeviceShaderIntegerDotProductFeatures integer_dot = {};
};

}  // namespace

// ---- memory

Memory::Memory(const Device& device, size_t bytes, Place place) : device_(&device), size_(bytes) {
  const DeviceFunctions& vk = device.functions_;
  if (bytes > device.most_bytes_) {
    device_ = nullptr;
    throw DeviceError(device.name_ + " gives at most " + std::to_string(device.most_bytes_ >> 20) +
                      " MiB in one piece, not " + std::to_string(bytes >> 20) + " MiB");
  }
  try {
    VkBufferCreateInfo info = {};
    info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
    info.size = std::max<size_t>(bytes, 4);
    info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                 VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
    check(vk.CreateBuffer(device.device_, &info, nullptr, &buffer_), "a buffer");
    VkMemoryRequirements needs = {};
    vk.GetBufferMemoryRequirements(device.device_, buffer_, &needs);
    VkMemoryAllocateFlagsInfo flags = {};
    flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
    flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
    VkMemoryAllocateInfo allocation = {};
    allocation.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
    allocation.pNext = &flags;
    allocation.allocationSize = needs.size;
    allocation.memoryTypeIndex = device.memory_type(needs.memoryTypeBits, place);
    const std::string what = "memory of " + std::to_string(bytes >> 20) + " MiB";
    check(vk.AllocateMemory(device.device_, &allocation, nullptr, &memory_), what.c_str());
    check(vk.BindBufferMemory(device.device_, buffer_, memory_, 0), "memory of a buffer");
    const VkMemoryType& type = device.memory_properties_.memoryTypes[allocation.memoryTypeIndex];
    if ((type.propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT) != 0 &&
        (type.propertyFlags & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT) != 0) {
      void* mapped = nullptr;
      check(vk.MapMemory(device.device_, memory_, 0, VK_WHOLE_SIZE, 0, &mapped), "mapped memory");
      data_ = static_cast<uint8_t*>(mapped);
    }
    VkBufferDeviceAddressInfo of_buffer = {};
    of_buffer.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
    of_buffer.buffer = buffer_;
    address_ = vk.GetBufferDeviceAddress(device.device_, &of_buffer);
  } catch (...) {
    free();
    throw;
  }
}

Memory::~Memory() { free(); }

void Memory::free() {
  if (device_ == nullptr || device_->hangs_) return;
  const DeviceFunctions& vk = device_->functions_;
  vk.DestroyBuffer(device_->device_, buffer_, nullptr);
  vk.FreeMemory(device_->device_, memory_, nullptr);
  device_ = nullptr;
}

void Memory::swap(Memory& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(buffer_, other.buffer_);
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  std::swap(address_, other.address_);
  std::swap(data_, other.data_);
}

// ---- commands

Commands::Commands(const Device& device) : device_(device) {
  VkCommandBufferAllocateInfo info = {};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
  info.commandPool = device.pool_;
  info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  info.commandBufferCount = 1;
  check(device.functions_.AllocateCommandBuffers(device.device_, &info, &buffer_), "commands");
  VkCommandBufferBeginInfo begin = {};
  begin.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  const VkResult result = device.functions_.BeginCommandBuffer(buffer_, &begin);
  if (result != VK_SUCCESS) {
    device.functions_.FreeCommandBuffers(device.device_, device.pool_, 1, &buffer_);
    fail("commands", result);
  }
  // Makes visible to these commands all that copies and earlier ones wrote.
  VkMemoryBarrier before = {};
  before.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  before.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  before.dstAccessMask =
      VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT;
  constexpr VkPipelineStageFlags kStages =
      VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  device.functions_.CmdPipelineBarrier(buffer_, kStages, kStages, 0, 1, &before, 0, nullptr, 0,
                                       nullptr);
}

Commands::~Commands() {
  if (device_.hangs_) return;
  device_.functions_.FreeCommandBuffers(device_.device_, device_.pool_, 1, &buffer_);
}

void Commands::dispatch(Shader shader, std::span<const uint32_t> constants,
                        std::span<const uint8_t> arguments, uint32_t x, uint32_t y) {
  if (x == 0 || y == 0) return;
  const DeviceFunctions& vk = device_.functions_;
  vk.CmdBindPipeline(buffer_, VK_PIPELINE_BIND_POINT_COMPUTE, device_.pipeline(shader, constants));
  vk.CmdPushConstants(buffer_, device_.layout_, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                      static_cast<uint32_t>(arguments.size()), arguments.data());
  vk.CmdDispatch(buffer_, x, y, 1);
}

void Commands::barrier() {
  VkMemoryBarrier barrier = {};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
  device_.functions_.CmdPipelineBarrier(buffer_, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0,
                                        nullptr, 0, nullptr);
}

void Commands::copy(const Memory& from, size_t from_offset, const Memory& to, size_t to_offset,
                    size_t bytes) {
  const VkBufferCopy region = {.srcOffset = from_offset, .dstOffset = to_offset, .size = bytes};
  device_.functions_.CmdCopyBuffer(buffer_, from.buffer(), to.buffer(), 1, &region);
}

void Commands::end() {
  // Makes the results visible to the host after the fence.
  VkMemoryBarrier barrier = {};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
  device_.functions_.CmdPipelineBarrier(
      buffer_, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
      VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  check(device_.functions_.EndCommandBuffer(buffer_), "commands");
}

// ---- the device

Device::Device(size_t number) {
  const Instance& instance = Instance::get();
  const InstanceFunctions& vk = instance.functions();
  const auto& devices = instance.devices();
  if (devices.empty()) {
    throw DeviceError(
        "no GPU: Vulkan's loader or a driver is not installed (Debian: mesa-vulkan-drivers, or the "
        "maker's own)");
  }
  if (number >= devices.size()) {
    throw DeviceError("there is no vulkan:" + std::to_string(number) +
                      ", the devices are vulkan:0 to " +
                      "vulkan:" + std::to_string(devices.size() - 1));
  }
  const VkPhysicalDevice physical = devices[number];
  VkPhysicalDeviceProperties properties = {};
  vk.GetPhysicalDeviceProperties(physical, &properties);
  name_ = properties.deviceName;
  Features features;
  // HEARTH_VULKAN=plain: nothing that a device may lack, to find a driver's fault.
  const char* wish = std::getenv("HEARTH_VULKAN");
  const bool plain = wish != nullptr && std::strcmp(wish, "plain") == 0;
  if (!plain && has_extension(physical, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
    features.addresses.pNext = &features.integer_dot;
  if (properties.apiVersion >= VK_API_VERSION_1_2)
    vk.GetPhysicalDeviceFeatures2(physical, &features.all);
  if (!features.addresses.bufferDeviceAddress || !features.storage16.storageBuffer16BitAccess) {
    throw DeviceError(name_ +
                      " lacks what the shaders need: Vulkan 1.2 with buffer device addresses "
                      "and 16-bit storage");
  }
  integer_dot_ = features.integer_dot.shaderIntegerDotProduct == VK_TRUE;
  vk.GetPhysicalDeviceMemoryProperties(physical, &memory_properties_);
  VkPhysicalDeviceMaintenance3Properties sizes = {};
  sizes.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES;
  VkPhysicalDeviceProperties2 more = {};
  more.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  more.pNext = &sizes;
  vk.GetPhysicalDeviceProperties2(physical, &more);
  most_bytes_ = sizes.maxMemoryAllocationSize;
  if (properties.limits.maxComputeWorkGroupInvocations < kThreads) {
    throw DeviceError(name_ + " runs workgroups of at most " +
                      std::to_string(properties.limits.maxComputeWorkGroupInvocations) +
                      " threads; the shaders have " + std::to_string(kThreads));
  }
  try {
    open_queue(physical);
  } catch (...) {
    close();
    throw;
  }
}

void Device::open_queue(VkPhysicalDevice physical) {
  const InstanceFunctions& instance = Instance::get().functions();
  uint32_t count = 0;
  instance.GetPhysicalDeviceQueueFamilyProperties(physical, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  instance.GetPhysicalDeviceQueueFamilyProperties(physical, &count, families.data());
  // Rather one that does not draw too: long steps then hold up no desktop.
  const auto find_family = [&](VkQueueFlags without) {
    uint32_t each = 0;
    while (each < count && ((families[each].queueFlags & VK_QUEUE_COMPUTE_BIT) == 0 ||
                            (families[each].queueFlags & without) != 0))
      ++each;
    return each;
  };
  uint32_t family = find_family(VK_QUEUE_GRAPHICS_BIT);
  if (family == count) family = find_family(0);
  if (family == count) throw DeviceError(name_ + " cannot compute");
  const float priority = 1.0f;
  VkDeviceQueueCreateInfo queue = {};
  queue.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue.queueFamilyIndex = family;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  Features wanted;
  wanted.storage16.storageBuffer16BitAccess = VK_TRUE;
  wanted.addresses.bufferDeviceAddress = VK_TRUE;
  VkDeviceCreateInfo info = {};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = &wanted.all;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  // A device that has it demands that it is enabled. (Its name is in a header that few include.)
  constexpr const char* kSubset = "VK_KHR_portability_subset";
  std::vector<const char*> extensions;
  if (has_extension(physical, kSubset)) extensions.push_back(kSubset);
  if (integer_dot_) {
    extensions.push_back(VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    wanted.integer_dot.shaderIntegerDotProduct = VK_TRUE;
    wanted.addresses.pNext = &wanted.integer_dot;
  }
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  vulkan::check(instance.CreateDevice(physical, &info, nullptr, &device_), "the device");
  const auto find = [&](const char* name) { return instance.GetDeviceProcAddr(device_, name); };
#define HEARTH_FIND(name) functions_.name = reinterpret_cast<PFN_vk##name>(find("vk" #name));
  HEARTH_DEVICE_FUNCTIONS(HEARTH_FIND)
#undef HEARTH_FIND
  functions_.GetDeviceQueue(device_, family, 0, &queue_);
  VkCommandPoolCreateInfo pool = {};
  pool.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  pool.queueFamilyIndex = family;
  vulkan::check(functions_.CreateCommandPool(device_, &pool, nullptr, &pool_), "a command pool");
  const VkPushConstantRange range = {
      .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .offset = 0, .size = kPushBytes};
  VkPipelineLayoutCreateInfo layout = {};
  layout.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &range;
  vulkan::check(functions_.CreatePipelineLayout(device_, &layout, nullptr, &layout_), "a layout");
  VkFenceCreateInfo fence = {};
  fence.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO;
  vulkan::check(functions_.CreateFence(device_, &fence, nullptr, &fence_), "a fence");
}

Device::~Device() { close(); }

void Device::close() {
  if (device_ == VK_NULL_HANDLE) return;
  // A device that hangs would not become idle. Its memory goes back when the process ends.
  if (hangs_) return;
  if (functions_.DeviceWaitIdle != nullptr) functions_.DeviceWaitIdle(device_);
  staging_ = Memory();
  for (const auto& [key, pipeline] : pipelines_)
    functions_.DestroyPipeline(device_, pipeline, nullptr);
  if (fence_ != VK_NULL_HANDLE) functions_.DestroyFence(device_, fence_, nullptr);
  if (layout_ != VK_NULL_HANDLE) functions_.DestroyPipelineLayout(device_, layout_, nullptr);
  if (pool_ != VK_NULL_HANDLE) functions_.DestroyCommandPool(device_, pool_, nullptr);
  if (functions_.DestroyDevice != nullptr) functions_.DestroyDevice(device_, nullptr);
  device_ = VK_NULL_HANDLE;
}

uint32_t Device::memory_type(uint32_t allowed, Place place) const {
  constexpr VkMemoryPropertyFlags kShared =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  // Cached: the host reads it as fast as its own.
  const VkMemoryPropertyFlags wanted[2] = {
      place == Place::device ? VkMemoryPropertyFlags{VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT}
                             : kShared | VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
      place == Place::device ? 0 : kShared};
  for (const VkMemoryPropertyFlags flags : wanted) {
    for (uint32_t i = 0; i < memory_properties_.memoryTypeCount; ++i) {
      const VkMemoryPropertyFlags has = memory_properties_.memoryTypes[i].propertyFlags;
      if ((allowed >> i & 1) != 0 && (has & flags) == flags) return i;
    }
  }
  throw DeviceError(name_ + " has no memory of the kind that is needed");
}

VkPipeline Device::pipeline(Shader shader, std::span<const uint32_t> constants) const {
  const std::pair key(shader, std::vector(constants.begin(), constants.end()));
  if (const auto known = pipelines_.find(key); known != pipelines_.end()) return known->second;
  std::vector<VkSpecializationMapEntry> entries;
  for (uint32_t i = 0; i < constants.size(); ++i)
    entries.push_back({.constantID = i, .offset = i * 4, .size = 4});
  const VkSpecializationInfo special = {.mapEntryCount = static_cast<uint32_t>(entries.size()),
                                        .pMapEntries = entries.data(),
                                        .dataSize = constants.size_bytes(),
                                        .pData = constants.data()};
  const std::span<const uint32_t> code = code_of(shader);
  VkShaderModuleCreateInfo info = {};
  info.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  info.codeSize = code.size_bytes();
  info.pCode = code.data();
  VkShaderModule module = VK_NULL_HANDLE;
  vulkan::check(functions_.CreateShaderModule(device_, &info, nullptr, &module), "a shader");
  VkComputePipelineCreateInfo create = {};
  create.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
  create.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  create.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  create.stage.module = module;
  create.stage.pName = "main";
  create.stage.pSpecializationInfo = &special;
  create.layout = layout_;
  VkPipeline made = VK_NULL_HANDLE;
  const VkResult result =
      functions_.CreateComputePipelines(device_, VK_NULL_HANDLE, 1, &create, nullptr, &made);
  functions_.DestroyShaderModule(device_, module, nullptr);
  vulkan::check(result, "a pipeline");
  pipelines_.emplace(key, made);
  return made;
}

void Device::check() const {
  if (hangs_) fail("a step", VK_TIMEOUT, name_);
}

void Device::run(const Commands& commands) const {
  const VkCommandBuffer buffer = commands.buffer();
  VkSubmitInfo submit = {};
  submit.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO;
  submit.commandBufferCount = 1;
  submit.pCommandBuffers = &buffer;
  check();
  vulkan::check(functions_.ResetFences(device_, 1, &fence_), "a fence");
  VkResult result = functions_.QueueSubmit(queue_, 1, &submit, fence_);
  if (result == VK_SUCCESS)
    result = functions_.WaitForFences(device_, 1, &fence_, VK_TRUE, kPatienceNs);
  hangs_ = result == VK_TIMEOUT;
  if (result != VK_SUCCESS) fail("a step", result, name_);
}

void Device::staged(const Memory& memory, size_t offset, size_t bytes, bool to_device,
                    uint8_t* into, const uint8_t* from) const {
  if (staging_.size() == 0) staging_ = Memory(*this, kStagingBytes, Place::shared);
  for (size_t done = 0; done < bytes; done += kStagingBytes) {
    const size_t part = std::min(bytes - done, kStagingBytes);
    if (to_device) std::memcpy(staging_.data(), from + done, part);
    Commands commands(*this);
    if (to_device)
      commands.copy(staging_, 0, memory, offset + done, part);
    else
      commands.copy(memory, offset + done, staging_, 0, part);
    commands.end();
    run(commands);
    if (!to_device) std::memcpy(into + done, staging_.data(), part);
  }
}

void Device::write(const Memory& to, size_t offset, std::span<const uint8_t> bytes) const {
  if (to.data() == nullptr) return staged(to, offset, bytes.size(), true, nullptr, bytes.data());
  std::copy(bytes.begin(), bytes.end(), to.data() + offset);
}

void Device::read(const Memory& from, size_t offset, std::span<uint8_t> bytes) const {
  if (from.data() == nullptr)
    return staged(from, offset, bytes.size(), false, bytes.data(), nullptr);
  std::copy_n(from.data() + offset, bytes.size(), bytes.data());
}

}  // namespace hearth::vulkan

namespace hearth {

bool has_vulkan() { return true; }

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> devices;
  const auto& instance = vulkan::Instance::get();
  const vulkan::InstanceFunctions& vk = instance.functions();
  for (const VkPhysicalDevice physical : instance.devices()) {
    VkPhysicalDeviceProperties properties = {};
    vk.GetPhysicalDeviceProperties(physical, &properties);
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {};
    budget.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT;
    VkPhysicalDeviceMemoryProperties2 memory = {};
    memory.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
    const bool tells = vulkan::has_extension(physical, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    if (tells) memory.pNext = &budget;
    if (properties.apiVersion >= VK_API_VERSION_1_1)
      vk.GetPhysicalDeviceMemoryProperties2(physical, &memory);
    else
      vk.GetPhysicalDeviceMemoryProperties(physical, &memory.memoryProperties);
    size_t bytes = 0, free = 0;
    for (uint32_t i = 0; i < memory.memoryProperties.memoryHeapCount; ++i) {
      const VkMemoryHeap& heap = memory.memoryProperties.memoryHeaps[i];
      if ((heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) == 0 || heap.size <= bytes) continue;
      bytes = heap.size;
      free = tells ? budget.heapBudget[i] - std::min(budget.heapUsage[i], budget.heapBudget[i])
                   : heap.size;
    }
    devices.push_back({.id = "vulkan:" + std::to_string(devices.size()),
                       .name = properties.deviceName,
                       .kind = vulkan::kind_of(properties.deviceType),
                       .memory_bytes = bytes,
                       .free_bytes = free});
  }
  return devices;
}

}  // namespace hearth
