// Vulkan's functions, found at run time: a build with GPU support starts on a machine without.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

namespace hearth::vulkan {

#define HEARTH_INSTANCE_FUNCTIONS(each)                                                    \
  each(DestroyInstance) each(EnumeratePhysicalDevices) each(GetPhysicalDeviceProperties)   \
      each(GetPhysicalDeviceProperties2) each(GetPhysicalDeviceFeatures2)                  \
          each(GetPhysicalDeviceMemoryProperties) each(GetPhysicalDeviceMemoryProperties2) \
              each(GetPhysicalDeviceQueueFamilyProperties) each(CreateDevice)              \
                  each(GetDeviceProcAddr) each(EnumerateDeviceExtensionProperties)

#define HEARTH_DEVICE_FUNCTIONS(each)                                                              \
  each(DestroyDevice) each(GetDeviceQueue) each(CreateBuffer) each(DestroyBuffer)                  \
      each(GetBufferMemoryRequirements) each(GetBufferDeviceAddress) each(AllocateMemory)          \
          each(FreeMemory) each(BindBufferMemory) each(MapMemory) each(CreateShaderModule)         \
              each(DestroyShaderModule) each(CreatePipelineLayout) each(DestroyPipelineLayout)     \
                  each(CreateComputePipelines) each(DestroyPipeline) each(CreateCommandPool)       \
                      each(DestroyCommandPool) each(AllocateCommandBuffers)                        \
                          each(FreeCommandBuffers) each(BeginCommandBuffer) each(EndCommandBuffer) \
                              each(CmdBindPipeline) each(CmdPushConstants) each(CmdDispatch)       \
                                  each(CmdPipelineBarrier) each(CmdCopyBuffer) each(QueueSubmit)   \
                                      each(CreateFence) each(DestroyFence) each(ResetFences)       \
                                          each(WaitForFences) each(DeviceWaitIdle)

#define HEARTH_DECLARE(name) PFN_vk##name name = nullptr;

struct InstanceFunctions {
  HEARTH_INSTANCE_FUNCTIONS(HEARTH_DECLARE)
};

struct DeviceFunctions {
  HEARTH_DEVICE_FUNCTIONS(HEARTH_DECLARE)
};

#undef HEARTH_DECLARE

}  // namespace hearth::vulkan
